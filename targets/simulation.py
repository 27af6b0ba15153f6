"""FP16 and Q/DQ graphs of GPUs run on the CPU, with the rounding that their types ask for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cmt.targets.base import Runner
from cmt.targets.onnxruntime import AS_WRITTEN, cpu_session, session_runner
from cmt.targets.settings import Settings

if TYPE_CHECKING:
    import onnx
    import onnxruntime

_MOVING_OPS = {"Concat", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
"""Emit numbers that they read, so there is nothing to round."""


def load_simulation(
    path: Path, threads: int, settings: Settings | None = None, batch: int | None = None
) -> Runner:
    """An FP16 or Q/DQ graph on ONNX Runtime, in place of the GPU it is meant for."""
    from cmt.targets.simulation import simulation_session

    return session_runner(simulation_session(path, threads))


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
    import onnx

    content = _explicit_rounding(onnx.load(path)).SerializeToString()
    entries = {**AS_WRITTEN, "session.enable_cast_chain_elimination": "0"}
    return cpu_session(content, threads, entries)


def _explicit_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    import numpy as np
    import onnx
    from onnx import numpy_helper

    from cmt.targets.onnx_edit import FLOAT, HALF, cast, replace_content, retarget_casts

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
        retarget_casts(node, HALF, FLOAT)
        node.output[:] = [f"{name}_exact" if name in rounded else name for name in node.output]
        nodes.append(node)
        for name in rounded:
            nodes.append(cast(f"{name}_exact", f"{name}_rounded", HALF))
            nodes.append(cast(f"{name}_rounded", name, FLOAT))
    replace_content(model, nodes, constants)
    return model
