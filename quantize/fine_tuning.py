"""Quantisation-aware fine-tuning: the network learns to answer as before through INT8's rounding.

What the recipe puts into INT8, and nothing else, is rounded in the forward pass: layers' inputs
with ranges found as `quantize.qdq` finds them, weights per channel; gradients pass through the
rounding inside the range (Jacob et al., arXiv 1712.05877). The float network is the teacher; labels
play no part. BatchNorm is frozen, its statistics and its scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cmt.calib_data.prepared import PreparedImages, spread
from cmt.quantize.gptq import IMAGES, LARGEST, LayerFit, Window, one_thread_each
from cmt.quantize.ranges import LEVELS, MSE, Histogram, Levels, half_scale
from cmt.quantize.recipe import Recipe
from cmt.rewrite import batchnorm_affine

BATCH = 16
LEARNING_RATE = 1e-4
"""Of the first step; a cosine takes it to zero over all epochs."""
HELD_OUT_IMAGES = 128
"""How many say whether an epoch did good."""

_FOLDED = {"project": "project_norm", "reduce.conv": "reduce.norm", "head.features": "head.norm"}
"""Layers with a BatchNorm right behind them, and what it is called."""

Layer = nn.Conv2d | nn.Linear
Outputs = tuple[Tensor, ...]
Histograms = Mapping[str, Histogram]


class _RoundedWeight(nn.Module):
    """A weight rounded to symmetric INT8, one scale for each output channel.

    Args:
        gain: (channels,), what each channel is multiplied by before it is rounded, since export
            folds the BatchNorm behind the layer into the weight.
    """

    gain: Tensor

    def __init__(self, gain: Tensor) -> None:
        super().__init__()
        self.register_buffer("gain", gain)

    def forward(self, weight: Tensor) -> Tensor:
        gain = _by_output(self.gain, weight)
        weight = weight * gain
        with torch.no_grad():
            largest = weight.flatten(1).abs().amax(1)
            scale = torch.from_numpy(half_scale(largest.double().numpy()))
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        weight = torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -LEVELS, LEVELS)
        return weight / gain


def _gain(network: nn.Module, path: str, channels: int) -> Tensor:
    """What export folds into the layer's weight; ones where nothing follows that folds."""
    for suffix, norm in _FOLDED.items():
        if path.endswith(suffix):
            folded = dict(network.named_modules()).get(path.removesuffix(suffix) + norm)
            if isinstance(folded, nn.BatchNorm2d):
                gain = batchnorm_affine(folded)[0].float()
                return torch.where(gain == 0, 1, gain)  # a dead channel stays as it is
    return torch.ones(channels)


def int8_layers(network: nn.Module, recipe: Recipe) -> dict[str, Layer]:
    """The layers that the recipe puts into INT8, by path.

    Raises InputError on one without a role.
    """
    layers = [
        (path, module)
        for path, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    return {
        path: layer
        for path, layer in layers
        if recipe.is_int8(
            [f"{path}.weight"], depthwise=isinstance(layer, nn.Conv2d) and layer.groups > 1
        )
    }


def observe_inputs(network: nn.Module, recipe: Recipe, images: PreparedImages) -> Histograms:
    """What the layers of the recipe are given in float, by path, on all of these images."""
    layers = int8_layers(network, recipe)
    paths = {layer: path for path, layer in layers.items()}
    histograms = {path: Histogram() for path in layers}

    def count(layer: nn.Module, given: tuple[Tensor]) -> None:
        histograms[paths[layer]].add(given[0].numpy())  # type: ignore[index]

    _observe(network, layers, images, len(images), count)
    return histograms


@contextmanager
def rounded(
    network: nn.Module, recipe: Recipe, histograms: Histograms, method: str = MSE
) -> Iterator[None]:
    """The network computes as its INT8 file will, with ranges from these histograms.

    Its weights stay float and are rounded anew in every forward pass.

    Args:
        histograms: from `observe_inputs`.
        method: how ranges are chosen, one of `quantize.ranges.METHODS`.
    """
    layers = int8_layers(network, recipe)
    hooks = []
    for path, layer in layers.items():
        levels = histograms[path].levels(recipe.asymmetric, method)
        hooks.append(layer.register_forward_pre_hook(_rounding(levels)))
        weight = _RoundedWeight(_gain(network, path, len(layer.weight)))
        parametrize.register_parametrization(layer, "weight", weight)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers.values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


@torch.no_grad()
def _observe(
    network: nn.Module,
    layers: Mapping[str, Layer],
    images: PreparedImages,
    count: int,
    hook: Callable[[nn.Module, tuple[Tensor]], None],
) -> None:
    """Show the hook what each layer is given in float on `count` images."""
    hooks = [layer.register_forward_pre_hook(hook) for layer in layers.values()]
    try:
        for batch in images.batches(BATCH, spread(len(images), count)):
            network(torch.from_numpy(batch))
    finally:
        for handle in hooks:
            handle.remove()


@torch.no_grad()
def fit_weights(
    network: nn.Module,
    recipe: Recipe,
    images: PreparedImages,
    histograms: Histograms,
    method: str,
) -> None:
    """Weights and biases fitted to rounded inputs, in place, as `quantize.gptq` fits a graph's.

    The weights are of their grid, so that `rounded` leaves them as they are.

    Args:
        images: show the inputs.
        histograms, method: set the ranges, as in `rounded`.
    """
    layers = int8_layers(network, recipe)
    gains = {layer: _gain(network, path, len(layer.weight)) for path, layer in layers.items()}
    fits = {
        layer: _layer_fit(layer, gains[layer], histograms[path].levels(recipe.asymmetric, method))
        for path, layer in layers.items()
        if layer.weight[0].numel() <= LARGEST
    }
    rng = np.random.default_rng(0)

    def count(layer: nn.Module, given: tuple[Tensor]) -> None:
        if layer in fits:
            fits[layer].add(given[0].numpy(), rng)

    with one_thread_each():
        _observe(network, layers, images, IMAGES, count)
        fitted_layers = {layer: fit.fit(keep_largest=True) for layer, fit in fits.items()}
    for layer, (weight, bias, _) in fitted_layers.items():
        for parameter, values in ((layer.weight, weight), (layer.bias, bias)):
            if parameter is not None and values is not None:
                fitted = torch.from_numpy(values).reshape(parameter.shape)
                parameter.copy_(fitted / _by_output(gains[layer], parameter))


def _layer_fit(layer: Layer, gain: Tensor, levels: Levels) -> LayerFit:
    """Of the layer as export folds it, but for what BatchNorm adds, which nothing changes."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    folded = [
        None if p is None else (p.detach().double() * _by_output(gain, p)).numpy()
        for p in (layer.weight, layer.bias)
    ]
    weight, bias = (
        None if values is None else values.reshape(groups, len(gain) // groups, -1)
        for values in folded
    )
    assert weight is not None
    window = None
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        window = Window(layer.kernel_size, layer.stride, layer.padding * 2)
    return LayerFit(weight, bias, levels, window)


def _by_output(gain: Tensor, parameter: Tensor) -> Tensor:
    """(channels,) in a shape that multiplies a weight or a bias."""
    return gain.reshape(-1, *[1] * (parameter.ndim - 1))


def _rounding(levels: Levels) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
    low, high = (0, 255) if levels.unsigned else (-LEVELS, LEVELS)
    return lambda _, given: torch.fake_quantize_per_tensor_affine(
        given[0], levels.scale, levels.zero_point, low, high
    )


class EpochState(TypedDict):
    """What an epoch leaves beside the network."""

    optimiser: dict[str, Any]
    error: float


def train_epoch(
    network: nn.Module,
    teacher: nn.Module,
    recipe: Recipe,
    images: PreparedImages,
    *,
    histograms: Histograms,
    method: str,
    epoch: int,
    epochs: int,
    seed: int,
    state: EpochState | None,
    advance: Callable[[int], None],
) -> EpochState:
    """One pass over the images, each mirrored or not; changes the network in place.

    Everything random comes from the seed and the epoch, so that epochs may run in processes of
    their own.

    Args:
        network: in evaluation mode; the same function as the teacher's, or near it.
        images: to learn on, no labels needed.
        histograms: set the ranges, as in `rounded`; the same for the whole epoch.
        method: how. The file's must be the same, or what is learned misleads it.
        epoch: from 0.
        state: what the epoch before returned; None for the first.

    Returns:
        for the next epoch, with the `error`, the mean over this one of the square error of the
        outputs relative to the teacher's.
    """
    learning = _learning_parameters(network)
    optimiser = torch.optim.Adam(learning, lr=LEARNING_RATE)
    if state is not None:
        optimiser.load_state_dict(state["optimiser"])
    rng = np.random.default_rng((seed, epoch))
    places = rng.permutation(len(images))
    steps = math.ceil(len(places) / BATCH)
    errors = []
    for parameter in learning:
        parameter.requires_grad_(True)
    with rounded(network, recipe, histograms, method):
        for step, batch in enumerate(images.batches(BATCH, places)):
            for group in optimiser.param_groups:
                progress = (epoch + step / steps) / epochs
                group["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * progress))
            x = torch.from_numpy(batch)
            mirrored = torch.from_numpy(rng.random(len(x)) < 0.5)
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
            with torch.no_grad():
                wanted = _outputs(teacher(x))
            error = _relative_error(_outputs(network(x)), wanted)
            optimiser.zero_grad()
            error.backward()
            optimiser.step()
            errors.append(float(error.detach()))
            advance(len(x))
    return {"optimiser": optimiser.state_dict(), "error": float(np.mean(errors))}


@torch.no_grad()
def held_out_error(
    network: nn.Module,
    teacher: nn.Module,
    recipe: Recipe,
    histograms: Histograms,
    held_out: PreparedImages,
    method: str,
) -> float:
    """Square error of the outputs in INT8 relative to the teacher's, mean over held-out images.

    Args:
        histograms, method: set the ranges, as in `rounded`.
        held_out: none of the images that they are from.
    """
    places = spread(len(held_out), HELD_OUT_IMAGES)
    errors = []
    with rounded(network, recipe, histograms, method):
        for batch in held_out.batches(BATCH, places):
            x = torch.from_numpy(batch)
            error = _relative_error(_outputs(network(x)), _outputs(teacher(x)))
            errors.append(float(error))
    return float(np.mean(errors))


def _learning_parameters(network: nn.Module) -> list[nn.Parameter]:
    """All but BatchNorm's, in the order of their names: rounding a weight moves it to the end."""
    frozen = {
        parameter
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d)
        for parameter in module.parameters()
    }
    named = sorted(network.named_parameters())
    return [parameter for _, parameter in named if parameter not in frozen]


def _outputs(given: Tensor | Outputs) -> Outputs:
    return given if isinstance(given, tuple) else (given,)


def _relative_error(outputs: Outputs, wanted: Outputs) -> Tensor:
    """Mean square error relative to the mean square of what is wanted, over all outputs."""
    errors = [
        (ours - theirs).square().mean() / theirs.square().mean()
        for ours, theirs in zip(outputs, wanted, strict=True)
    ]
    return torch.stack(errors).mean()
