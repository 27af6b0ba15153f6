"""Cross-layer scaling: the channels that an INT8 layer is given, brought to one size.

A tensor has one scale, so a channel far above the others leaves them few levels. Where one layer or
normalisation writes the channels and linear layers read them, each channel can be divided by its
size and what reads it multiplied: the same function (M. Nagel et al., arXiv 1906.04721, section
4.1; G. Xiao et al., SmoothQuant, arXiv 2211.10438, equations 3 and 4 with alpha 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cmt.network import CMT, Attention, Block, InvertedResidualFFN

_LEAST = 1e-3
"""Of the median channel's size. One below that is as good as dead on these images: scaled up, it
might not fit FP16, and its range would be too small once it wakes."""


@dataclass(frozen=True)
class Site:
    """Channels that can be scaled.

    Attributes:
        writers: give them; nothing else reads what they give.
        reader: the INT8 layer whose input has one scale.
        others: that read them too.
    """

    writers: tuple[nn.Module, ...]
    reader: nn.Conv2d | nn.Linear
    others: tuple[nn.Conv2d | nn.Linear, ...] = ()


def sites(model: CMT) -> Iterator[Site]:
    """Where channels can be scaled, all that the recipe for TensorRT quantises but stage ends."""
    for module in model.modules():
        if isinstance(module, Block):
            yield from _of_attention(module.attention, module.norm1)
            yield from _of_ffn(module.ffn, module.norm2)


def _of_attention(attention: Attention, norm: nn.Module) -> Iterator[Site]:
    q, k, v = attention.q, attention.k, attention.v
    if attention.reduce is None:
        yield Site((norm,), q, (k, v))
    else:
        yield Site((norm,), q, (attention.reduce.conv,))
        yield Site((attention.reduce.norm,), k, (v,))
    # Averages of the values, weighted by softmax, are as they are scaled.
    yield Site((v,), attention.proj)


def _of_ffn(ffn: InvertedResidualFFN, norm: nn.Module) -> Iterator[Site]:
    yield Site((norm,), ffn.expand)
    if ffn.inner_activation:
        yield Site((ffn.expand_norm, ffn.depthwise_norm), ffn.project, (ffn.depthwise,))
    else:
        yield Site((ffn.depthwise_norm,), ffn.project)


@torch.no_grad()
def equalise(model: CMT, batches: Iterable[Tensor]) -> None:
    """Scale the channels, in place, to the largest magnitude that the median one had.

    So it makes no difference how they were scaled before, within reason: a channel of less than a
    thousandth stays, and none is scaled down by more.

    The function stays the same up to float32 rounding.

    Args:
        model: in evaluation mode.
        batches: calibration inputs, float32 (B, 3, H, W).
    """
    found = list(sites(model))
    peaks = _peaks(model, [site.reader for site in found], batches)
    for site in found:
        peak = peaks[site.reader]
        alive = peak[peak > 0]
        if len(alive) == 0:
            continue
        size = peak / alive.median()
        size = torch.where(size < _LEAST, 1, size.clamp(max=1 / _LEAST))
        for writer in site.writers:
            for parameter in writer.parameters():
                parameter.div_(size.reshape(-1, *[1] * (parameter.ndim - 1)))
        for reader in (site.reader, *site.others):
            depthwise = isinstance(reader, nn.Conv2d) and reader.groups > 1
            weight = reader.weight if depthwise else reader.weight.transpose(0, 1)
            weight.mul_(size.reshape(-1, *[1] * (weight.ndim - 1)))


def _peaks(
    model: CMT, layers: list[nn.Conv2d | nn.Linear], batches: Iterable[Tensor]
) -> dict[nn.Module, Tensor]:
    """The largest magnitude of each channel, (channels,), that each layer is given."""
    peaks: dict[nn.Module, Tensor] = {}

    def observe(layer: nn.Module, given: tuple[Tensor]) -> None:
        x = given[0] if isinstance(layer, nn.Linear) else given[0].movedim(1, -1)
        peak = x.abs().flatten(0, -2).amax(0)
        peaks[layer] = torch.maximum(peak, peaks[layer]) if layer in peaks else peak

    hooks = [layer.register_forward_pre_hook(observe) for layer in layers]
    try:
        for batch in batches:
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return peaks
