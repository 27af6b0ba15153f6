"""Explicit INT8: QuantizeLinear / DequantizeLinear in the ONNX graph.

TensorRT and OpenVINO fuse the pairs into INT8 kernels; ONNX Runtime runs the same file. One
scale per tensor for activations, one per output channel for weights, which are symmetric.
Weights are stored as int8 and dequantised, so the file holds no float copy of them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from cmt.errors import InputError
from cmt.quantize.ranges import LEVELS, MSE, Histogram, Levels, half_scale
from cmt.quantize.recipe import Recipe, layer_of, unit_of
from cmt.targets.onnxruntime import run_each


@dataclass(frozen=True)
class Layer:
    """A node to quantise: input 0 is the activation, input 1 the weight, input 2 the bias if any.

    Attributes:
        axis: of the weight's output channels.
        source: the tensor to quantise.
        moves: the Reshapes and Transposes from there to the node's input.
        unit: which of `quantize.recipe.unit_of` it belongs to.
        name: `quantize.recipe.layer_of`.
    """

    node: onnx.NodeProto
    axis: int
    source: str
    moves: tuple[onnx.NodeProto, ...]
    unit: str
    name: str


def observe(
    model: onnx.ModelProto,
    batches: Iterable[NDArray[np.float32]],
    recipe: Recipe,
    progress: Callable[[int], None] | None = None,
    threads: int = 0,
) -> dict[str, Histogram]:
    """What each tensor that the recipe quantises takes on, by name.

    Args:
        model: CMT's simplified float32 graph in ONNX, initialisers named after the network's
            parameters.
        batches: calibration inputs, float32 (B, 3, H, W) as the graph takes them; read once.
        recipe: which layers, and signed or unsigned activations.
        progress: called with each batch's number of images when it is done.
        threads: of the CPU; 0 takes all.

    Raises InputError when the graph is quantised already, a layer has no role in the
    recipe, there are no batches, or a batch does not fit the graph.
    """
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise InputError("the graph is quantised already: start from the float32 graph")
    names = list(dict.fromkeys(layer.source for layer in find_layers(model.graph, recipe)))
    histograms = {name: Histogram() for name in names}
    for values in observed(model, names, batches, progress, threads):
        for name in names:
            histograms[name].add(values[name])
    return histograms


@dataclass(frozen=True)
class Rounded:
    """A weight on the grid that it will have, and the bias that goes with it.

    Attributes:
        weight: of the graph's own shape; int8 levels, or float32 for a layer left float.
        scale: (outputs,), float32, what a level is worth; None for float32.
        bias: (outputs,), float32; None where the layer has none.
    """

    weight: NDArray[Any]
    scale: NDArray[np.float32] | None
    bias: NDArray[np.float32] | None


def insert_qdq(
    model: onnx.ModelProto,
    histograms: Mapping[str, Histogram],
    recipe: Recipe,
    *,
    method: str = MSE,
    keep_float: Container[str] = (),
    rounded: Mapping[str, Rounded] | None = None,
) -> onnx.ModelProto:
    """A copy of the graph with Q/DQ around the layers of the recipe.

    Args:
        histograms: as `observe` returns them.
        method: how ranges are chosen, one of `quantize.ranges.METHODS`.
        keep_float: layers (`quantize.recipe.layer_of`) that stay as they are, and units
            (`unit_of`) all of whose layers do.
        rounded: by the weight's name, from `quantize.gptq`; others go to the nearest level.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    layers = [
        layer
        for layer in find_layers(model.graph, recipe)
        if layer.unit not in keep_float and layer.name not in keep_float
    ]
    _insert(model.graph, layers, input_levels(layers, histograms, recipe, method), rounded or {})
    onnx.checker.check_model(model, full_check=True)
    return model


def input_levels(
    layers: Iterable[Layer], histograms: Mapping[str, Histogram], recipe: Recipe, method: str
) -> dict[str, Levels]:
    """What the tensors that the layers are given are rounded to, by `Layer.source`."""
    sources = dict.fromkeys(layer.source for layer in layers)
    return {name: histograms[name].levels(recipe.asymmetric, method) for name in sources}


@dataclass
class Unit:
    """Layers that go to INT8, or back, together.

    Attributes:
        layers: how many.
        macs: their multiply-adds per inference.
    """

    layers: int = 0
    macs: int = 0


def int8_units(model: onnx.ModelProto, recipe: Recipe) -> dict[str, Unit]:
    """The units (`quantize.recipe.unit_of`) that the recipe puts to INT8, in the graph's order."""
    return _units(model, [(layer.node, layer.unit) for layer in find_layers(model.graph, recipe)])


def layers_by_unit(model: onnx.ModelProto, recipe: Recipe) -> dict[str, list[str]]:
    """The layers (`quantize.recipe.layer_of`) of each of `int8_units`."""
    layers: dict[str, list[str]] = {}
    for layer in find_layers(model.graph, recipe):
        layers.setdefault(layer.unit, []).append(layer.name)
    return layers


def all_units(model: onnx.ModelProto) -> dict[str, Unit]:
    """All units of a graph, in its order."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return _units(model, [(n, unit) for n, unit in parts(model) if unit and is_layer(n, constants)])


def _units(model: onnx.ModelProto, layers: Sequence[tuple[onnx.NodeProto, str]]) -> dict[str, Unit]:
    typed = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    infos = [*typed.graph.value_info, *typed.graph.output]
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in infos}
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    units: dict[str, Unit] = {}
    for node, name in layers:
        unit = units.setdefault(name, Unit())
        unit.layers += 1
        weight = weights[node.input[1]]
        unit.macs += prod(shapes[node.output[0]]) * prod(weight) // weight[output_axis(node)]
    return units


def output_axis(node: onnx.NodeProto) -> int:
    """The dimension of a layer's weight that its output channels are on."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else 1


def parts(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, str | None]]:
    """All nodes in order, with the unit of the last layer before or at them; None before any."""
    readers, constants = _readers(model.graph), {t.name for t in model.graph.initializer}
    unit = None
    for node in model.graph.node:
        if is_layer(node, constants):
            unit = unit_of(_parameters(node, readers, constants))
        yield node, unit


def is_layer(node: onnx.NodeProto, constants: set[str]) -> bool:
    return node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in constants


def _readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def find_layers(graph: onnx.GraphProto, recipe: Recipe) -> list[Layer]:
    constants = {tensor.name for tensor in graph.initializer}
    readers = _readers(graph)
    producers = {name: node for node in graph.node for name in node.output}
    layers = []
    for node in graph.node:
        if not is_layer(node, constants):
            continue
        parameters = list(_parameters(node, readers, constants))
        attributes = {a.name: a.i for a in node.attribute}
        if recipe.is_int8(parameters, depthwise=attributes.get("group", 1) > 1):
            moves = _moves(node.input[0], producers) if recipe.at_source else ()
            source = moves[0].input[0] if moves else node.input[0]
            axis, unit, name = output_axis(node), unit_of(parameters), layer_of(parameters)
            layers.append(Layer(node, axis, source, moves, unit, name))
    return layers


def _moves(name: str, producers: Mapping[str, onnx.NodeProto]) -> tuple[onnx.NodeProto, ...]:
    """From a LayerNorm's output to the tensor `name`, if only moved in between, in order."""
    moves: list[onnx.NodeProto] = []
    while (node := producers.get(name)) is not None and node.op_type in ("Reshape", "Transpose"):
        moves.insert(0, node)
        name = node.input[0]
    return tuple(moves) if node is not None and node.op_type == "LayerNormalization" else ()


def _parameters(
    node: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]], constants: set[str]
) -> Iterator[str]:
    """Names of a layer's constants, its bias found also in an Add behind the product.

    The simplifier turns linear layers that share an input into one MatMul, Split and Adds.
    """
    yield from (name for name in node.input if name in constants)
    for reader in (reader for name in node.output for reader in readers.get(name, [])):
        if reader.op_type in ("Add", "Split"):
            yield from _parameters(reader, readers if reader.op_type == "Split" else {}, constants)


def observed(
    model: onnx.ModelProto,
    names: Sequence[str],
    batches: Iterable[NDArray[np.float32]],
    progress: Callable[[int], None] | None = None,
    threads: int = 0,
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """What the tensors `names` of a float graph take on, batch by batch.

    `progress` is called with each batch's number of images when the next one is asked for.

    Raises InputError when there are no batches, or one does not fit the graph.
    """
    augmented = onnx.ModelProto.FromString(model.SerializeToString())
    known = {info.name for info in [*model.graph.input, *model.graph.output]}
    augmented.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in names if name not in known
    )
    source = model.graph.input[0]
    shape = [dimension.dim_value for dimension in source.type.tensor_type.shape.dim]

    def fitting() -> Iterator[NDArray[np.float32]]:
        for batch in batches:
            if list(batch.shape) != shape:
                raise InputError(f"calibration batch is {batch.shape}, the graph takes {shape}")
            yield batch

    fetched = [name for name in names if name != source.name]
    images = 0
    for batch, values in run_each(augmented.SerializeToString(), fetched, fitting(), threads):
        yield {source.name: batch, **dict(zip(fetched, values, strict=True))}
        images += len(batch)
        if progress is not None:
            progress(len(batch))
    if images == 0:
        raise InputError("INT8 needs calibration images and got none")


def _insert(
    graph: onnx.GraphProto,
    layers: Sequence[Layer],
    levels: Mapping[str, Levels],
    rounded: Mapping[str, Rounded],
) -> None:
    weights = {tensor.name: tensor for tensor in graph.initializer}
    by_output = {layer.node.output[0]: layer for layer in layers}
    constants: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()
    for node in graph.node:
        layer = by_output.get(node.output[0])
        weight = node.input[1] if len(node.input) > 1 else ""
        own = rounded.get(weight)
        if layer is not None:
            own = own or _nearest(weights[weight], layer.axis)
            if layer.source not in done:
                constants.extend(_parameters_of(layer.source, levels[layer.source]))
                nodes.extend(_pair(layer.source))
            if weight not in done:
                constants.extend(_int8_weight(weight, own))
                nodes.append(_dequantise(weight, axis=layer.axis))
            done |= {layer.source, weight}
            node.input[0], node.input[1] = f"{layer.source}_dq", f"{weight}_dq"
            for move in layer.moves:
                if f"{move.output[0]}_dq" not in done:
                    nodes.append(_moved(move))
                    done.add(f"{move.output[0]}_dq")
                node.input[0] = f"{move.output[0]}_dq"
        elif own is not None and own.scale is None:
            weights[weight] = numpy_helper.from_array(own.weight, weight)
        else:
            own = None  # a layer of the recipe that stays as it is
        if own is not None and own.bias is not None:
            weights[node.input[2]] = numpy_helper.from_array(own.bias, node.input[2])
        nodes.append(node)
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in [*weights.values(), *constants] if tensor.name in read]
    for field, items in ((graph.node, nodes), (graph.initializer, kept), (graph.value_info, [])):
        del field[:]
        field.extend(items)


def _moved(move: onnx.NodeProto) -> onnx.NodeProto:
    """The same Reshape or Transpose, of the dequantised values."""
    copy = onnx.NodeProto.FromString(move.SerializeToString())
    copy.name = f"{move.name}_dq"
    copy.input[0], copy.output[0] = f"{move.input[0]}_dq", f"{move.output[0]}_dq"
    return copy


def _parameters_of(name: str, levels: Levels) -> list[onnx.TensorProto]:
    kind = np.uint8 if levels.unsigned else np.int8
    return [
        numpy_helper.from_array(np.array(levels.scale, np.float32), f"{name}_scale"),
        numpy_helper.from_array(np.array(levels.zero_point, kind), f"{name}_zero"),
    ]


def _pair(name: str) -> list[onnx.NodeProto]:
    inputs, output = [name, f"{name}_scale", f"{name}_zero"], f"{name}_q"
    quantise = helper.make_node("QuantizeLinear", inputs, [output], name=f"{name}_quantise")
    return [quantise, _dequantise(name, f"{name}_zero")]


def _dequantise(name: str, *zero: str, **axis: int) -> onnx.NodeProto:
    inputs = [f"{name}_q", f"{name}_scale", *zero]
    return helper.make_node(
        "DequantizeLinear", inputs, [f"{name}_dq"], name=f"{name}_dequantise", **axis
    )


def _nearest(tensor: onnx.TensorProto, axis: int) -> Rounded:
    weight = numpy_helper.to_array(tensor)
    channels = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    scale = half_scale(np.abs(channels).max(1))
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    levels = np.clip(np.rint(weight / scale.reshape(shape)), -LEVELS, LEVELS)
    return Rounded(levels.astype(np.int8), scale, None)


def _int8_weight(name: str, rounded: Rounded) -> list[onnx.TensorProto]:
    assert rounded.scale is not None
    return [
        numpy_helper.from_array(rounded.weight, f"{name}_q"),
        numpy_helper.from_array(rounded.scale, f"{name}_scale"),
    ]
