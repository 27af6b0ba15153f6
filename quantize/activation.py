"""GELU by a fitted hard-swish where INT8 rounds its result anyway.

A hard-swish, u * clip(u / 6 + 1/2, 0, 1), costs a CPU a quarter of what GELU (erf) does. With
u = slope * x + offset and a scale and a shift behind it, all per channel, it follows GELU over
the values that a channel really takes: slope and offset fold into the convolution before it,
scale and shift are one multiply-add. The projection behind the IRFFN's two stand-ins is then
solved anew for what it gave before.

This is no exact rewrite. It belongs to INT8 alone, and the accuracy gate judges it. Relative error
of the logits (root mean square), CMT-Ti trained on Imagenette, 300 photos, no INT8: 1.76 %, and
1.24 % with the projections solved anew. The stem's GELUs stay: replaced too, they made it
3.3 %, and with INT8 3.7 %.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cmt.rewrite import (
    Activation,
    InferenceCMT,
    InferenceFFN,
    as_layer,
    fold_backward,
    on_tokens,
)

IMAGES = 32
"""How many images are enough: 512 values per channel, and positions for the projections."""
_SAMPLES = 512
"""Values per channel that a fit looks at."""
_POSITIONS = 20_000
"""Positions that a projection is solved on."""
_RIDGE = 1e-2
"""Weight of staying as it was, per input channel relative to that channel's power. Fitted on
64 images, the error was 1.21, 1.25 and 1.30 % with 1e-2, 1e-3 and 1e-4."""
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
        batches: normalised images (B, 3, H, W), at least one.
    """
    inputs: dict[InferenceFFN, list[Tensor]] = {
        module: [] for module in model.modules() if isinstance(module, InferenceFFN)
    }

    def observe(module: nn.Module, given: tuple[Tensor]) -> None:
        assert isinstance(module, InferenceFFN)
        inputs[module].append(given[0])

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
    target = ffn(x)
    x = on_tokens(ffn.norm, x)
    before = ffn.expand(x)
    exact = ffn.depthwise(ffn.activation(before))
    _replace(ffn.expand, ffn.activation, before, nn.functional.gelu(before))
    h = ffn.activation(ffn.expand(x))
    # It is given what the first one returns and asked for what followed the exact one.
    _replace(ffn.depthwise, ffn.depthwise_activation, ffn.depthwise(h), nn.functional.gelu(exact))
    d = ffn.depthwise_activation(ffn.depthwise(h))
    _solve(ffn.project, h + d if ffn.inner_activation else d, target)


def _replace(conv: nn.Conv2d, activation: Activation, x: Tensor, target: Tensor) -> None:
    """The activation behind `conv`, which gave x, from now on a stand-in that gives the target."""
    slope, offset, scale, shift = fit(_spread(x), _spread(target))
    weight, bias = fold_backward(as_layer(conv), (slope, offset))
    conv.weight.copy_(weight)
    conv.bias.copy_(bias)  # type: ignore[union-attr]
    activation.become_hardswish(scale, shift)


def _solve(layer: nn.Conv2d, x: Tensor, target: Tensor) -> None:
    """The weights of a 1x1 convolution, moved by ridge regression until x gives the target."""
    missing, given = _by_position(target - layer(x)), _by_position(x)
    given = torch.cat([given, torch.ones_like(given[:, :1])], 1)
    gram = given.T @ given
    power = gram.diagonal()
    # The mean power keeps channels that are always zero solvable.
    gram = gram + torch.diag(_RIDGE * power + 1e-6 * power.mean())
    change = torch.linalg.solve(gram, given.T @ missing)
    layer.weight += change[:-1].T[:, :, None, None]
    layer.bias += change[-1]


def _by_position(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (positions, C), float64, evenly spread ones where there are many."""
    return _evenly(x.permute(0, 2, 3, 1).flatten(0, 2), 0, _POSITIONS).double()


def _spread(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (C, samples): the same evenly spread positions of every channel."""
    return _evenly(x.permute(1, 0, 2, 3).flatten(1), 1, _SAMPLES)


def _evenly(values: Tensor, dim: int, count: int) -> Tensor:
    """`count` slices along one dimension, or all, evenly spread."""
    total = values.shape[dim]
    return values.index_select(dim, torch.linspace(0, total - 1, min(count, total)).long())
