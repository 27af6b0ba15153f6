"""FP16 as TensorRT's strong typing wants it: the graph itself says where FP16 is.

`to_fp16` turns a float32 graph, with or without Q/DQ, into one whose weights and tensors are
FP16; `targets.simulation` runs such a graph on the CPU with the rounding that it asks for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from cmt.errors import InputError
from cmt.quantize.qdq import parts
from cmt.targets.onnx_edit import FLOAT, HALF, cast, replace_content, retarget_casts
from cmt.targets.onnxruntime import run_each

HALF_MAX = float(np.finfo(np.float16).max)
SAFE_RANGE = HALF_MAX / 4
"""Tensors measured above this stay FP32: new images may exceed what calibration met."""

# LayerNormalization sums squares over the channels: one value of 256 overflows FP16 already, and
# FP16 there has cost vision transformers most of their accuracy. Softmax exponentiates and sums
# the attention scores. Neither is a product that tensor cores would speed up.
_FLOAT_OPS = {"LayerNormalization", "Softmax"}
_TYPED_OPS = {"Constant", "ConstantOfShape", "If", "Loop", "Scan"}
"""State their type inside; simplified graphs have none."""


def to_fp16(
    model: onnx.ModelProto,
    ranges: Mapping[str, float] | None = None,
    keep_float: Collection[str] = (),
) -> onnx.ModelProto:
    """An explicitly typed FP16 copy of a simplified graph; inputs and outputs stay float32.

    LayerNormalization and Softmax become FP32 islands between Casts. Scales of Q/DQ pairs
    become FP16, so what DequantizeLinear emits is FP16.

    Args:
        model: float32 graph, simplified; Q/DQ allowed.
        ranges: largest magnitude measured per tensor; whatever reads or writes a tensor
            above `SAFE_RANGE` computes in FP32.
        keep_float: units (`quantize.recipe.unit_of`) that compute in FP32, each with all that
            follows its layers up to the next layer.

    Raises InputError when a weight does not fit FP16, and on graphs that are not simplified.
    """
    unfit = sorted({node.op_type for node in model.graph.node} & _TYPED_OPS)
    if unfit:
        raise InputError(f"the graph holds {', '.join(unfit)} nodes: simplify it first")
    wide = {name for name, largest in (ranges or {}).items() if largest > SAFE_RANGE}
    islands = (
        {node.output[0] for node, unit in parts(model) if unit in keep_float}
        if keep_float
        else set()
    )
    converted = _Converter(model, wide, islands).convert()
    onnx.checker.check_model(converted, full_check=True)
    return converted


def measure_ranges(
    model: onnx.ModelProto, batches: Iterable[NDArray[np.float32]], threads: int = 0
) -> dict[str, float]:
    """The largest magnitude of every float tensor that a graph computes.

    The graph itself reduces each tensor to that one number, so memory stays that of a run.

    Args:
        model: float32 graph, simplified.
        batches: inputs, float32 (B, 3, H, W) as the graph takes them.
        threads: of the CPU; 0 takes all.
    """
    typed = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    infos = [*typed.graph.value_info, *typed.graph.output]
    names = [info.name for info in infos if info.type.tensor_type.elem_type == FLOAT]
    del typed.graph.output[:]
    for name in names:
        magnitude, largest = f"{name}_magnitude", f"{name}_largest"
        typed.graph.node.append(helper.make_node("Abs", [name], [magnitude]))
        typed.graph.node.append(helper.make_node("ReduceMax", [magnitude], [largest], keepdims=0))
        typed.graph.output.append(helper.make_tensor_value_info(largest, FLOAT, []))
    answers = run_each(typed.SerializeToString(), None, batches, threads)
    largest_of = np.max([largest for _, largest in answers], axis=0)
    return dict(zip(names, largest_of.tolist(), strict=True))


class _Converter:
    """Walks the graph once; `available` says what a tensor is called in each type it has."""

    def __init__(self, model: onnx.ModelProto, wide: set[str], islands: set[str]) -> None:
        self.model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        graph = self.model.graph
        self.wide, self.islands = wide, islands
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.ends = {info.name for info in [*graph.input, *graph.output]}
        typed = [*graph.value_info, *graph.input, *graph.output]
        self.floats = {info.name for info in typed if info.type.tensor_type.elem_type == FLOAT}
        self.floats |= {name for name, t in self.constants.items() if t.data_type == FLOAT}
        self.available = {(info.name, FLOAT): info.name for info in graph.input}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers = [t for t in graph.initializer if t.data_type != FLOAT]

    def convert(self) -> onnx.ModelProto:
        graph = self.model.graph
        for node in graph.node:  # a Q/DQ pair gives what it was given
            if (
                node.op_type in ("QuantizeLinear", "DequantizeLinear")
                and node.input[0] in self.wide
            ):
                self.wide.add(node.output[0])
        for node in graph.node:
            self._convert_node(node)
        for output in graph.output:
            self._read(output.name, FLOAT)
        replace_content(self.model, self.nodes, self.initializers)
        return self.model

    def _convert_node(self, node: onnx.NodeProto) -> None:
        touched = {*node.input, *node.output} & self.floats
        is_float = node.op_type in _FLOAT_OPS or node.output[0] in self.islands
        kind = FLOAT if is_float or touched & self.wide else HALF
        inputs = [self._read(name, kind) if name in self.floats else name for name in node.input]
        outputs = [self._claim(name, kind) if name in self.floats else name for name in node.output]
        node.input[:], node.output[:] = inputs, outputs
        retarget_casts(node, FLOAT, kind)
        self.nodes.append(node)

    def _read(self, tensor: str, kind: int) -> str:
        """The tensor's name in this type, converted at first use."""
        if (tensor, kind) not in self.available:
            name = self._claim(tensor, kind)
            if tensor in self.constants:
                self.initializers.append(_constant(self.constants[tensor], kind, name))
            else:
                source = self.available[tensor, FLOAT if kind == HALF else HALF]
                self.nodes.append(cast(source, name, kind))
        return self.available[tensor, kind]

    def _claim(self, tensor: str, kind: int) -> str:
        # Inputs and outputs keep their names in float32, everything else in FP16.
        own = FLOAT if tensor in self.ends else HALF
        name = tensor if kind == own else f"{tensor}_{'float' if kind == FLOAT else 'half'}"
        self.available[tensor, kind] = name
        return name


def _constant(tensor: onnx.TensorProto, kind: int, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    if kind == HALF:
        largest = float(np.abs(values).max(initial=0.0))
        # Written so that NaN is refused too.
        if not largest <= HALF_MAX:
            raise InputError(
                f"{tensor.name} holds {largest:g}, beyond FP16's {HALF_MAX:g}: export FP32"
            )
        values = values.astype(np.float16)
    return numpy_helper.from_array(values, name)
