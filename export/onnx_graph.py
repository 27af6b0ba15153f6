"""torch -> ONNX -> simplified ONNX, both saved as files."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cmt.calib_data.preprocessing import Preprocessing
from cmt.network import CMT
from cmt.rewrite import InferenceCMT

if TYPE_CHECKING:
    import onnx

# LayerNormalization is one operator from opset 17 on, Gelu from 20 on; OpenVINO, ONNX Runtime
# and TensorRT 10 read both.
OPSET = 20
INPUT_NAME = "input"
PIXELS_NAME = "pixels"
"""The input of a graph with the preprocessing inside."""


def output_names(features: bool) -> list[str]:
    """The graph's outputs: the logits, or the four stage maps (strides 4, 8, 16, 32)."""
    return [f"stage{i}" for i in (1, 2, 3, 4)] if features else ["logits"]


def export_onnx(model: CMT | InferenceCMT, batch: int, path: Path) -> None:
    """Write the network as ONNX with a fixed (batch, 3, H, W) float32 input.

    Weights keep the network's parameter names, by which later steps tell the roles apart.
    """
    import torch

    example = torch.zeros(batch, 3, *model.img_size)
    with _quiet(), _no_collection(), torch.no_grad():
        torch.onnx.export(
            model,
            (example,),
            path,
            input_names=[INPUT_NAME],
            output_names=output_names(model.head is None),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
            # It folds BatchNorm into weights and keeps their names, which the simplifier does not.
            # Without any, the simplifier alone makes the same graph in two thirds of the time.
            optimize=any(isinstance(part, torch.nn.BatchNorm2d) for part in model.modules()),
        )


def simplify_onnx(source: Path, path: Path) -> None:
    """Fold constants and merge redundant nodes with onnxsim."""
    import onnx
    import onnxsim

    with _quiet():
        # onnxsim's own check uses random input; ours (the parity gate) uses real images.
        model, _ = onnxsim.simplify(onnx.load(source), check_n=0)
    _name_constants(model.graph)
    _infer_batch(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _name_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initialisers, the one kind of constant that later steps look for."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    for node in [node for node in graph.node if node.op_type == "Constant"]:
        (attribute,) = node.attribute  # of a name that says the type: value_float, value_ints, ...
        value = helper.get_attribute_value(attribute)
        if not isinstance(value, TensorProto):
            kind = np.float32 if "float" in attribute.name else np.int64
            value = numpy_helper.from_array(np.array(value, kind))
        graph.initializer.add().CopyFrom(value)
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)


def _infer_batch(model: onnx.ModelProto) -> None:
    """Take the example's batch, always the first dimension, out of the graph's constants.

    Every Reshape infers it from its input. A softmax over a single key is folded to ones for
    all images; those of one serve all.
    """
    from onnx import numpy_helper

    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    shapes = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
    factors = {x for node in model.graph.node if node.op_type == "MatMul" for x in node.input}
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if tensor.name in shapes and values[0] == batch and -1 not in values:
            values[0] = -1
        elif tensor.name in factors and values.ndim > 2 and len(values) == batch:
            assert (values == values[:1]).all(), tensor.name
            values = values[:1]
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def embed_preprocessing(model: onnx.ModelProto, preprocessing: Preprocessing) -> onnx.ModelProto:
    """A copy that takes uint8 images (B, H, W, 3) in place of normalised float32 (B, 3, H, W).

    The scale and shift stay in front of the first convolution: folded into it they would be
    wrong along the border, whose padding is zero after normalising, not before. They are
    float32 whatever the precision of the rest.

    Args:
        model: any graph of the pipeline, FP16 and Q/DQ included.
    """
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    (source,) = graph.input
    batch, channels, height, width = (d.dim_value for d in source.type.tensor_type.shape.dim)
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    constants = {"pixels_scale": 1 / (255 * std), "pixels_shift": -mean / std}
    nodes = [
        # Cast first: TensorRT takes uint8 nowhere else.
        helper.make_node("Cast", [PIXELS_NAME], ["pixels_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels_float", "pixels_scale"], ["pixels_scaled"]),
        helper.make_node("Add", ["pixels_scaled", "pixels_shift"], ["pixels_normalised"]),
        helper.make_node("Transpose", ["pixels_normalised"], [source.name], perm=[0, 3, 1, 2]),
    ]
    for node in nodes:
        node.name = f"{node.output[0]}_preprocessing"
    shape = [batch, height, width, channels]
    pixels = helper.make_tensor_value_info(PIXELS_NAME, TensorProto.UINT8, shape)
    for field, items in ((graph.input, [pixels]), (graph.node, [*nodes, *graph.node])):
        del field[:]
        field.extend(items)
    graph.initializer.extend(
        numpy_helper.from_array(values.astype(np.float32), name)
        for name, values in constants.items()
    )
    onnx.checker.check_model(model, full_check=True)
    return model


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Leave what nobody refers to until the end: the exporter makes objects by the million, and
    looking through them again and again takes a tenth of its time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporters' progress prints and their notes on packages we do not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
