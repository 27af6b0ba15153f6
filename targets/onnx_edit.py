"""Edits of ONNX graphs that several steps make."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto, helper

from cmt.targets.base import BATCH_SYMBOL

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def cast(source: str, name: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [name], name=f"{source}_to_{name}", to=kind)


def retarget_casts(node: onnx.NodeProto, old: int, new: int) -> None:
    """Let a Cast to `old` cast to `new`; other nodes stay as they are."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == old:
            attribute.i = new


def replace_content(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]
) -> None:
    """Put these nodes and initialisers in place of the graph's own; inferred types go."""
    del model.graph.value_info[:]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)


def free_batch(model: onnx.ModelProto) -> None:
    """Make the batch of a simplified graph, or one made from it, a symbol that loaders set."""
    for batch in _batches(model):
        batch.dim_param = BATCH_SYMBOL


def set_batch(model: onnx.ModelProto, size: int) -> None:
    """Give a simplified graph, or one made from it, this batch."""
    for batch in _batches(model):
        batch.dim_value = size


def _batches(model: onnx.ModelProto) -> Iterator[onnx.TensorShapeProto.Dimension]:
    """The batch of each input and output; those of other tensors are left to be inferred."""
    del model.graph.value_info[:]
    for info in (*model.graph.input, *model.graph.output):
        yield info.type.tensor_type.shape.dim[0]
