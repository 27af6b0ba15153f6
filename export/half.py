"""FP16 as TensorRT's strong typing wants it: the graph itself says where FP16 is.

`to_fp16` turns a float32 graph, with or without Q/DQ, into one whose weights and tensors are
FP16; `simulation_session` runs such a graph on the CPU with the rounding that it asks for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cmt.errors import InputError
from measure.sessions import AS_WRITTEN, cpu_session, run_each
from quantize.qdq import parts

if TYPE_CHECKING:
    import onnxruntime

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
HALF_MAX = float(np.finfo(np.float16).max)
SAFE_RANGE = HALF_MAX / 4
"""Tensors measured above this stay FP32: new images may exceed what calibration met."""

# LayerNormalization sums squares over the channels: one value of 256 overflows FP16 already, and
# FP16 there has cost vision transformers most of their accuracy. Softmax exponentiates and sums
# the attention scores. Neither is a product that tensor cores would speed up.
_FLOAT_OPS = {"LayerNormalization", "Softmax"}
_TYPED_OPS = {"Constant", "ConstantOfShape", "If", "Loop", "Scan"}
"""State their type inside; simplified graphs have none."""
_MOVING_OPS = {"Concat", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
"""Emit numbers that they read, so there is nothing to round."""


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
        _replace(self.model, self.nodes, self.initializers)
        return self.model

    def _convert_node(self, node: onnx.NodeProto) -> None:
        touched = {*node.input, *node.output} & self.floats
        is_float = node.op_type in _FLOAT_OPS or node.output[0] in self.islands
        kind = FLOAT if is_float or touched & self.wide else HALF
        inputs = [self._read(name, kind) if name in self.floats else name for name in node.input]
        outputs = [self._claim(name, kind) if name in self.floats else name for name in node.output]
        node.input[:], node.output[:] = inputs, outputs
        _retarget(node, FLOAT, kind)
        self.nodes.append(node)

    def _read(self, tensor: str, kind: int) -> str:
        """The tensor's name in this type, converted at first use."""
        if (tensor, kind) not in self.available:
            name = self._claim(tensor, kind)
            if tensor in self.constants:
                self.initializers.append(_constant(self.constants[tensor], kind, name))
            else:
                source = self.available[tensor, FLOAT if kind == HALF else HALF]
                self.nodes.append(_cast(source, name, kind))
        return self.available[tensor, kind]

    def _claim(self, tensor: str, kind: int) -> str:
        # Inputs and outputs keep their names in float32, everything else in FP16.
        own = FLOAT if tensor in self.ends else HALF
        name = tensor if kind == own else f"{tensor}_{'float' if kind == FLOAT else 'half'}"
        self.available[tensor, kind] = name
        return name


def _cast(source: str, name: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [name], name=f"{source}_to_{name}", to=kind)


def _retarget(node: onnx.NodeProto, old: int, new: int) -> None:
    """Let a Cast to `old` cast to `new`; other nodes stay as they are."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == old:
            attribute.i = new


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


def _replace(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]
) -> None:
    """Put these nodes and initialisers in place of the graph's own; inferred types go."""
    del model.graph.value_info[:]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)


def simulation_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Run a saved FP16 or Q/DQ file on the CPU with the rounding that its types ask for.

    ONNX Runtime's CPU provider has next to no FP16 kernels. It runs an FP16 graph in float32
    and drops the Casts in between at every optimisation level, so neither FP16's rounding
    nor its overflow shows. A Cast pair that the graph itself contains is kept. So the session
    gets the same graph in float32 with such a pair behind every operator that emits FP16.
    Products accumulate in float32, as tensor cores do. A fused GPU kernel rounds less often,
    and an INT8 one does not round what DequantizeLinear emits: this errs on the strict side.

    Options: `AS_WRITTEN`; `session.enable_cast_chain_elimination` = 0 keeps the pairs; all other
    optimisations stay on.

    Args:
        path: ONNX file as `to_fp16` or `quantize.qdq.insert_qdq` made it, saved.
        threads: of one inference.
    """
    content = _explicit_rounding(onnx.load(path)).SerializeToString()
    entries = {**AS_WRITTEN, "session.enable_cast_chain_elimination": "0"}
    return cpu_session(content, threads, entries)


def _explicit_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    graph = model.graph
    halves = {i.name for i in graph.value_info if i.type.tensor_type.elem_type == HALF}
    constants = [
        numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
        if tensor.data_type == HALF
        else tensor
        for tensor in graph.initializer
    ]
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        rounded = [name for name in node.output if name in halves]
        if node.op_type in _MOVING_OPS:
            rounded = []
        _retarget(node, HALF, FLOAT)
        node.output[:] = [f"{name}_exact" if name in rounded else name for name in node.output]
        nodes.append(node)
        for name in rounded:
            nodes.append(_cast(f"{name}_exact", f"{name}_rounded", HALF))
            nodes.append(_cast(f"{name}_rounded", name, FLOAT))
    _replace(model, nodes, constants)
    return model
