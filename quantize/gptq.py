"""Weights of INT8 layers, fitted to the rounded inputs that the layers will be given.

The nearest level is best for a weight, not for what the layer computes. First, the weights move to
what gives the exact inputs' result from the rounded ones, by ridge regression. Then they are
rounded one input after the other, and those still to come make up for the error: inputs go together
(channels, neighbouring pixels), so what one weight's rounding gets wrong, the others of its output
channel can take back (E. Frantar et al., GPTQ, arXiv 2210.17323, equations 2 and 3). The bias comes
last and is not rounded. The file is as fast as with any other numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from threadpoolctl import threadpool_limits

from cmt.quantize.qdq import Rounded, find_layers, input_levels, is_layer, observed, output_axis
from cmt.quantize.ranges import LEVELS, Histogram, Levels, half_scale
from cmt.quantize.recipe import Recipe
from cmt.targets.machine import usable_cores

IMAGES = 32
"""How many the weights are fitted on."""
_POSITIONS = 64
"""At how many positions of each image; small maps have fewer."""
LARGEST = 2560
"""Inputs of an output: moments grow with their square. Only the first stage's dense reductions have
more."""
_RIDGE = 1.0
"""Weight of a weight's staying where it was, relative to the mean power of the inputs."""
_DAMPING = 0.01
"""The same for GPTQ, whose authors' it is."""
_AT_ONCE = 1024
"""Positions whose products are added to the moments together: large ones are read and written."""
_IN_CACHE = 1 << 18
"""Numbers of a layer with many groups that are looked at together."""
_BLOCK = 64
"""Inputs that are rounded before all that follow hear of it."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Window:
    """Which inputs an output of a convolution is computed from.

    Attributes:
        pads: of zeros: top, left, bottom, right.
    """

    kernel: Sequence[int]
    strides: Sequence[int]
    pads: Sequence[int]


class LayerFit:
    """One layer, fitted to what its inputs become.

    Args:
        weight: (groups, outputs of a group, inputs of an output), float64.
        bias: (groups, outputs of a group, 1); None where the layer has none.
        levels: of the layer's input; None where it stays float.
        window: of a convolution; None for a product over the last dimension.
    """

    def __init__(
        self, weight: Array, bias: Array | None, levels: Levels | None, window: Window | None
    ) -> None:
        self._bias = bias
        self._levels, self._window = levels, window
        self._inputs = weight.shape[2]
        self._exact = weight.astype(np.float32)
        self._weight = weight if bias is None else np.concatenate([weight, bias], 2)
        self._waiting: list[Array] = []
        # Sums over positions, of the products of the rounded inputs with each other, (groups,
        # inputs, inputs), and with what the layer loses by their rounding, (groups, outputs,
        # inputs).
        self._given: Array = np.zeros(())
        self._missing: Array = np.zeros(())

    def add(self, x: Array, rng: np.random.Generator) -> None:
        """Count what the layer is given, (B, ...), at some positions of each image."""
        self.take(self.pick(x, rng))

    def take(self, rows: Array) -> None:
        """Count what was picked, (groups, positions, inputs)."""
        self._waiting.append(rows)
        if sum(rows.shape[1] for rows in self._waiting) >= _AT_ONCE:
            self._count()

    def pick(self, x: Array, rng: np.random.Generator) -> Array:
        """What outputs at some positions are computed from, (groups, positions, inputs)."""
        if self._window is None:
            rows = x.reshape(len(x), -1, x.shape[-1])
            return rows[:, _some(rows.shape[1], rng)].reshape(1, -1, x.shape[-1])
        top, left, bottom, right = self._window.pads
        strides = self._window.strides
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        windows = np.lib.stride_tricks.sliding_window_view(x, self._window.kernel, (2, 3))
        windows = windows[:, :, :: strides[0], :: strides[1]]
        height, width = windows.shape[2:4]
        rows, columns = np.divmod(_some(height * width, rng), width)
        picked = windows[:, :, rows, columns]  # (images, channels, positions, kernel)
        groups = len(self._exact)
        picked = picked.reshape(len(x), groups, -1, len(rows), *self._window.kernel)
        return picked.transpose(1, 0, 3, 2, 4, 5).reshape(groups, -1, self._inputs)

    def _count(self) -> None:
        exact = np.concatenate(self._waiting, 1)
        self._waiting.clear()
        step = max(1, _IN_CACHE // exact[0].size)
        parts = [slice(begin, begin + step) for begin in range(0, len(exact), step)]
        sums = [self._sums(exact[part], self._exact[part]) for part in parts]
        given, missing = (np.concatenate(arrays) for arrays in zip(*sums, strict=True))
        self._given, self._missing = self._given + given, self._missing + missing

    def _sums(self, exact: Array, weight: Array) -> tuple[Array, Array]:
        """What some groups add to `_given` and `_missing`."""
        given = exact
        if self._levels is not None:
            given = self._levels.round_trip(exact).astype(np.float32)
        lost = weight @ (exact - given).transpose(0, 2, 1)
        if self._bias is not None:
            given = np.concatenate([given, np.ones((*given.shape[:2], 1), np.float32)], 2)
        return given.transpose(0, 2, 1) @ given, lost @ given

    def fit(
        self, keep_largest: bool = False
    ) -> tuple[Array, Array | None, NDArray[np.float32] | None]:
        """Weight on its grid, its bias, and what a level is worth, (groups, outputs).

        The weight is of BF16 numbers, and there are no levels, where the input stays float.

        Args:
            keep_largest: an output's largest weight gets the last level whatever it could make up
                for, so that the weights alone tell the grid: their nearest levels are themselves.
        """
        if self._waiting:
            self._count()
        weight, inputs, scale, nearest, kept = self._weight, self._inputs, None, to_bf16, None
        if self._levels is not None:
            power = _add_to_diagonal(self._given, _RIDGE, inputs)
            change = np.linalg.solve(power, self._missing.transpose(0, 2, 1).astype(np.float64))
            weight = weight + change.transpose(0, 2, 1)
            magnitudes = np.abs(weight[:, :, :inputs])
            scale = half_scale(magnitudes.max(2))
            nearest = partial(_nearest_level, scale.astype(np.float64))
            if keep_largest:
                kept = magnitudes == magnitudes.max(2, keepdims=True)
        weight = compensated(weight, inputs, self._given, nearest, kept)
        return weight[:, :, :inputs], None if self._bias is None else weight[:, :, inputs:], scale


@dataclass(frozen=True)
class _Layer:
    """A layer of a graph.

    Attributes:
        axis: of the weight's outputs.
        shape: of the weight, the outputs first.
        levels: of its input by each method; None where it stays float.
        fits: by levels, which methods may have in common.
    """

    node: onnx.NodeProto
    axis: int
    shape: tuple[int, ...]
    levels: Sequence[Levels | None]
    fits: Mapping[Levels | None, LayerFit]

    def add(self, x: Array, rng: np.random.Generator) -> None:
        """Count what the layer is given, (B, ...), the same of it for all fits."""
        fits = list(self.fits.values())
        rows = fits[0].pick(x, rng)
        for fit in fits:
            fit.take(rows)

    def rounded(self) -> list[Rounded]:
        """The layer's weight on its grid, with its bias, by each method."""
        found = {levels: self._rounded(fit) for levels, fit in self.fits.items()}
        return [found[levels] for levels in self.levels]

    def _rounded(self, fit: LayerFit) -> Rounded:
        weight, bias, scale = fit.fit()
        bias = None if bias is None else bias.ravel().astype(np.float32)
        if scale is None:
            return Rounded(self._restored(weight.astype(np.float32)), None, bias)
        levels = np.rint(weight / scale[:, :, None]).astype(np.int8)
        return Rounded(self._restored(levels), scale.ravel(), bias)

    def _restored(self, values: Array) -> Array:
        """(groups, outputs, inputs) in the shape that the graph has."""
        return np.ascontiguousarray(np.moveaxis(values.reshape(self.shape), 0, self.axis))


def round_weights(
    model: onnx.ModelProto,
    batches: Iterable[NDArray[np.float32]],
    histograms: Mapping[str, Histogram],
    recipe: Recipe,
    *,
    methods: Sequence[str],
    progress: Callable[[int], None] | None = None,
    threads: int = 0,
) -> dict[str, dict[str, Rounded]]:
    """Weights and biases for `quantize.qdq.insert_qdq`, by method and by the weight's name.

    INT8 for the layers of the recipe; where `Recipe.bf16`, BF16 numbers for other convolutions.

    Args:
        model, histograms: as `insert_qdq` takes them.
        methods: of choosing ranges, all of which are fitted to what the graph computes once.
        batches: calibration inputs, float32 (B, 3, H, W); read once.
        progress: called with each batch's number of images when it is done.
    """
    layers = _layers(model, histograms, recipe, methods)
    names = [layer.node.input[0] for layer in layers]
    rng = np.random.default_rng(0)
    with one_thread_each():
        for values in observed(model, list(dict.fromkeys(names)), batches, progress, threads):
            for layer in layers:
                layer.add(values[layer.node.input[0]], rng)
        with ThreadPoolExecutor(threads or usable_cores()) as pool:
            fitted = list(pool.map(_Layer.rounded, layers))
    weights = [layer.node.input[1] for layer in layers]
    by_method = zip(*fitted, strict=True)
    return {
        method: dict(zip(weights, rounded, strict=True))
        for method, rounded in zip(methods, by_method, strict=True)
    }


def one_thread_each() -> AbstractContextManager[Any]:
    """Within it, no product of matrices or solution of equations is divided among threads.

    The threads of NumPy's OpenBLAS wait for each other by spinning. Beside those of ONNX Runtime
    they took up to 60 times the time of one, and their number decided the last bits.
    """
    return threadpool_limits(1, user_api="blas")


def _layers(
    model: onnx.ModelProto,
    histograms: Mapping[str, Histogram],
    recipe: Recipe,
    methods: Sequence[str],
) -> list[_Layer]:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    names, found = set(constants), find_layers(model.graph, recipe)
    by_source = [input_levels(found, histograms, recipe, method) for method in methods]
    levels = {layer.node.output[0]: [by[layer.source] for by in by_source] for layer in found}
    layers = []
    for node in model.graph.node:
        own = levels.get(node.output[0], [None] * len(methods))
        rounded = node.output[0] in levels or (recipe.bf16 and node.op_type == "Conv")
        if not rounded or not is_layer(node, names):
            continue
        axis = output_axis(node)
        weight = np.moveaxis(numpy_helper.to_array(constants[node.input[1]]), axis, 0)
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        shaped = weight.reshape(groups, len(weight) // groups, -1).astype(np.float64)
        bias = None
        if len(node.input) > 2:
            bias = numpy_helper.to_array(constants[node.input[2]]).astype(np.float64)
            bias = bias.reshape(*shaped.shape[:2], 1)
        if shaped.shape[2] <= LARGEST:
            window = _window(node)
            fits = {chosen: LayerFit(shaped, bias, chosen, window) for chosen in own}
            layers.append(_Layer(node, axis, weight.shape, own, fits))
    return layers


def _window(node: onnx.NodeProto) -> Window | None:
    if node.op_type != "Conv":
        return None
    attributes = {a.name: list(a.ints) for a in node.attribute}
    return Window(
        attributes["kernel_shape"],
        attributes.get("strides", [1, 1]),
        attributes.get("pads", [0, 0, 0, 0]),
    )


def _some(total: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.choice(total, min(total, _POSITIONS), replace=False)


def compensated(
    weight: Array,
    inputs: int,
    moments: Array,
    nearest: Callable[[Array], Array],
    kept: Array | None = None,
) -> Array:
    """The weight with its inputs rounded, each making up for those before it.

    Inputs that count most go first, while most others can still make up for them.

    Args:
        weight: (groups, outputs, inputs or more); what comes after the inputs is not rounded.
        moments: sums of products of the inputs, (groups, inputs or more, the same).
        nearest: (groups, outputs) to the numbers of the grid next to them.
        kept: (groups, outputs, inputs), which weights are rounded as they are, making up for none.
    """
    moments = _add_to_diagonal(moments, _DAMPING, inputs)
    places = np.arange(inputs)
    share = moments[:, places, places] * np.square(weight[:, :, :inputs]).mean(1)
    order = np.argsort(-share, axis=1, kind="stable")
    rest = np.broadcast_to(
        np.arange(inputs, weight.shape[2]), (len(weight), weight.shape[2] - inputs)
    )
    order = np.concatenate([order, rest], 1)
    moments = np.take_along_axis(moments, order[:, :, None], 1)
    moments = np.take_along_axis(moments, order[:, None, :], 2)
    weight = np.take_along_axis(weight, order[:, None, :], 2)
    if kept is not None:
        kept = np.take_along_axis(kept, order[:, None, :inputs], 2)
    factor = np.linalg.cholesky(np.linalg.inv(moments)).transpose(0, 2, 1)
    before = weight.copy()
    for begin in range(0, inputs, _BLOCK):
        end = min(begin + _BLOCK, inputs)
        errors = np.empty((*weight.shape[:2], end - begin))
        for i in range(begin, end):
            exact = weight[:, :, i].copy()
            own = exact if kept is None else np.where(kept[:, :, i], before[:, :, i], exact)
            weight[:, :, i] = nearest(own)
            error = (exact - weight[:, :, i]) / factor[:, i, i][:, None]
            weight[:, :, i + 1 : end] -= error[:, :, None] * factor[:, None, i, i + 1 : end]
            errors[:, :, i - begin] = error
        weight[:, :, end:] -= errors @ factor[:, begin:end, end:]
    return np.take_along_axis(weight, np.argsort(order, axis=1)[:, None, :], 2)


def _add_to_diagonal(moments: Array, share: float, inputs: int) -> Array:
    """The inputs' mean power, `share` of it, added to each one's."""
    result = moments.astype(np.float64)
    places = np.arange(inputs)
    power = result[:, places, places].mean(1, keepdims=True)
    # A layer that is given nothing but zeros stays solvable.
    result[:, places, places] += np.where(power > 0, share * power, 1)
    return result


def _nearest_level(scale: Array, values: Array) -> Array:
    # Ten thousands of calls: np.clip takes longer than what it does.
    return np.minimum(np.maximum(np.rint(values / scale), -LEVELS), LEVELS) * scale


def to_bf16(values: Array) -> Array:
    """The nearest BF16 numbers, ties to even, as float64."""
    bits = values.astype(np.float32).view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)


def save_rounded(rounded: Mapping[str, Rounded], path: Path) -> None:
    """Write weights by name as one .npz file."""
    arrays = {
        f"{part}/{name}": values
        for name, own in rounded.items()
        for part, values in vars(own).items()
        if values is not None
    }
    np.savez(path, **arrays)


def load_rounded(path: Path) -> dict[str, Rounded]:
    """What `save_rounded` wrote."""
    with np.load(path) as file:
        arrays = dict(file)
    names = [key.removeprefix("weight/") for key in arrays if key.startswith("weight/")]
    return {
        name: Rounded(
            arrays[f"weight/{name}"], arrays.get(f"scale/{name}"), arrays.get(f"bias/{name}")
        )
        for name in names
    }
