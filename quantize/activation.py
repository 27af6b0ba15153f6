"""GELU by a fitted hard-swish where INT8 rounds its result anyway.

A hard-swish, u * clip(u / 6 + 1/2, 0, 1), costs a CPU a quarter of what GELU (erf) does. With
u = slope * x + offset and a scale and a shift behind it, all per channel, it follows GELU over
the values that a channel really takes: slope and offset fold into the convolution before it,
scale and shift are one multiply-add. The projection behind the IRFFN's two stand-ins is then
solved anew for what it gave before.

This is no exact rewrite. It belongs to INT8 alone, and the accuracy gate judges it. Relative error
of the logits (root mean square), CMT-Ti trained on Imagenette, 256 held-out photos, no INT8: 1.22 %
(bundled demo: 1.62 %). The stem's GELUs stay: replaced too, they made it 3.3 %, and with INT8 3.7 %
(300 photos, an earlier fit).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cmt.rewrite import Activation, InferenceCMT, InferenceFFN, as_layer, fold_backward, on_tokens

IMAGES = 64
"""How many are enough: half as many made the error 1.32 % (bundled demo: 1.93 %), twice as many
1.16 % (1.60 %)."""
_FEWEST = 32
"""Images of the largest maps, of which fewer have `_POSITIONS`."""
_SAMPLES = 1024
"""Values per channel that a fit looks at; with half as many, 1.25 % (1.76 %)."""
_POSITIONS = 20_000
"""The most that a projection is solved on; small maps of all images have fewer."""
_RIDGE = 1e-2
"""Weight of staying as it was, per input channel relative to that channel's power; with 0.1 and
0.003, 1.21 and 1.24 % (1.63 and 1.63 %)."""
_SLOPES = torch.linspace(0.9, 4.5, 19)
_OFFSETS = torch.linspace(-0.6, 0.6, 7)


def fit(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slope, offset, scale and shift per channel with the least mean squared error.

    Slope and offset are searched on a grid; for each pair, scale and shift are the linear
    regression of the target on the hard-swish.

    Args:
        x: (channels, samples), float32, what the stand-in is given.
        target: (channels, samples), float32, what it should return.

    Returns:
        four tensors (channels,), float64.
    """
    centred = target - target.mean(1, keepdim=True)
    grid = torch.cartesian_prod(_SLOPES, _OFFSETS)
    most, best = torch.full((len(x),), -1.0), torch.zeros(len(x), dtype=torch.long)
    y = torch.empty_like(x)
    for i, (slope, offset) in enumerate(grid.tolist()):
        # In place: what this loop costs is memory traffic.
        nn.functional.hardswish(torch.mul(x, slope, out=y).add_(offset), inplace=True)
        y.sub_(y.mean(1, keepdim=True))
        # How much of the target's variance the regression on y explains.
        power = torch.linalg.vecdot(y, y).clamp(min=1e-12)
        explained = torch.linalg.vecdot(y, centred).square() / power
        better = explained > most
        most, best = torch.where(better, explained, most), torch.where(better, i, best)
    slopes, offsets = grid.double()[best].T
    y = nn.functional.hardswish(slopes[:, None] * x + offsets[:, None])
    mean = y.mean(1)
    y = y - mean[:, None]
    scales = (y * centred).sum(1) / y.square().sum(1).clamp(min=1e-12)
    return slopes, offsets, scales, target.double().mean(1) - scales * mean


def fit_activations(model: InferenceCMT, batches: Iterable[Tensor]) -> None:
    """Replace the two GELUs of every IRFFN in place, fitted on images.

    Each IRFFN is fitted to itself, on the input that the exact network gives it.

    Args:
        batches: normalised images (B, 3, H, W), at least one, in no order: of large maps, the
            first are enough.
    """
    inputs: dict[InferenceFFN, list[Tensor]] = {
        module: [] for module in model.modules() if isinstance(module, InferenceFFN)
    }

    def observe(module: nn.Module, given: tuple[Tensor]) -> None:
        assert isinstance(module, InferenceFFN)
        kept, (x,) = inputs[module], given
        if sum(map(len, kept)) < max(_FEWEST, _POSITIONS // x[0, 0].numel()):
            kept.append(x)

    hooks = [ffn.register_forward_pre_hook(observe) for ffn in inputs]
    with torch.no_grad():
        for batch in batches:
            model(batch)
        for hook in hooks:
            hook.remove()
        for ffn in inputs:
            _fit_ffn(ffn, torch.cat(inputs[ffn]))
            inputs[ffn].clear()


def _fit_ffn(ffn: InferenceFFN, x: Tensor) -> None:
    """The stand-ins of one IRFFN, from its input (B, C, H, W)."""
    x = on_tokens(ffn.norm, x)
    before = ffn.expand(x)
    h = ffn.activation(before)
    after = ffn.depthwise(h)
    wanted = _projected(ffn, h, after)
    _replace(ffn.expand, ffn.activation, before, nn.functional.gelu(before))
    h = ffn.activation(ffn.expand(x))
    # It is given what the first one returns and asked for what followed the exact one.
    _replace(ffn.depthwise, ffn.depthwise_activation, ffn.depthwise(h), nn.functional.gelu(after))
    _solve(ffn.project, _projected(ffn, h, ffn.depthwise(h)), wanted)


def _projected(ffn: InferenceFFN, h: Tensor, after: Tensor) -> Tensor:
    """What the projection is given at some positions, (positions, C).

    Args:
        h, after: (B, C, H, W), what the depthwise convolution is given and returns.
    """
    d = ffn.depthwise_activation(after)
    x = h + d if ffn.inner_activation else d
    return _some(x.permute(0, 2, 3, 1).flatten(0, 2), 0, _POSITIONS)


def _replace(conv: nn.Conv2d, activation: Activation, x: Tensor, target: Tensor) -> None:
    """The activation behind `conv`, which gave x, from now on a stand-in that gives the target."""
    slope, offset, scale, shift = fit(_by_channel(x), _by_channel(target))
    weight, bias = fold_backward(as_layer(conv), (slope, offset))
    conv.weight.copy_(weight)
    conv.bias.copy_(bias)  # type: ignore[union-attr]
    activation.become_hardswish(scale, shift)


def _solve(layer: nn.Conv2d, given: Tensor, wanted: Tensor) -> None:
    """The weights of a 1x1 convolution, moved by ridge regression to give what they gave before.

    Args:
        given, wanted: (positions, C), what it is given from now on and was given before.
    """
    missing = (wanted - given) @ layer.weight.flatten(1).T
    given = torch.cat([given, torch.ones_like(given[:, :1])], 1)
    gram = (given.T @ given).double()
    power = gram.diagonal()
    # The mean power keeps channels that are always zero solvable.
    gram = gram + torch.diag(_RIDGE * power + 1e-6 * power.mean())
    change = torch.linalg.solve(gram, (given.T @ missing).double())
    layer.weight += change[:-1].T[:, :, None, None]
    layer.bias += change[-1]


def _by_channel(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (C, samples): the same positions of every channel."""
    return _some(x.permute(1, 0, 2, 3).flatten(1), 1, _SAMPLES)


def _some(values: Tensor, dim: int, count: int) -> Tensor:
    """`count` slices along one dimension, or all: the same of as many in every call.

    Drawn, since evenly spaced ones of many maps fall on a few of their columns.
    """
    total = values.shape[dim]
    if total <= count:
        return values
    drawn = torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count]
    return values.index_select(dim, drawn.sort().values)
