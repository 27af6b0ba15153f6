"""Saved files loaded into something callable, one loader per runtime.

A runner maps a normalised float32 batch (B, 3, H, W) to the list of the network's outputs.
Each loader imports its runtime alone, so that a device needs only the one it has.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Runner = Callable[[Array], list[Array]]


def load_torch(path: Path, threads: int) -> Runner:
    """The reference network: `network.json` says how to build it, `weights.pt` is beside it."""
    import torch

    from cmt.network import build

    torch.set_num_threads(threads)
    config = json.loads(path.read_text())
    model = build(**{**config, "img_size": tuple(config["img_size"])}).eval()
    model.load_state_dict(torch.load(path.with_name("weights.pt"), weights_only=True))

    def run(batch: Array) -> list[Array]:
        with torch.inference_mode():
            outputs = model(torch.from_numpy(batch))
        return [t.numpy() for t in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return run


# Float32 wherever the file says float: OpenVINO would otherwise pick BF16 by itself where the
# CPU has it, and the report would compare precisions that nobody asked for.
OPENVINO_SETTINGS: dict[str, Any] = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "INFERENCE_PRECISION_HINT": "f32",
}


def load_openvino(path: Path, threads: int) -> Runner:
    """An IR file on the CPU, compiled with `OPENVINO_SETTINGS`."""
    import openvino as ov

    settings = {**OPENVINO_SETTINGS, "INFERENCE_NUM_THREADS": threads}
    request = ov.Core().compile_model(path, "CPU", settings).create_infer_request()
    count = len(request.model_outputs)

    def run(batch: Array) -> list[Array]:
        request.infer([batch], share_inputs=True)
        return [request.get_output_tensor(i).data.copy() for i in range(count)]

    return run


def load_onnxruntime(path: Path, threads: int) -> Runner:
    """An ONNX file on ONNX Runtime's CPU provider with its default optimisations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return _session_runner(ort.InferenceSession(path, options, ["CPUExecutionProvider"]))


def load_simulation(path: Path, threads: int) -> Runner:
    """An FP16 or Q/DQ graph on ONNX Runtime, in place of the GPU it is meant for."""
    from export.half import simulation_session

    return _session_runner(simulation_session(path, threads))


def _session_runner(session: Any) -> Runner:
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})


SIMULATED = "onnxruntime (simulated)"
LOADERS: dict[str, Callable[[Path, int], Runner]] = {
    "torch": load_torch,
    "openvino": load_openvino,
    "onnxruntime": load_onnxruntime,
    SIMULATED: load_simulation,
}


def run_all(
    runner: Runner, batches: Any, total: int, advance: Callable[[int], None]
) -> list[Array]:
    """All outputs of the first `total` images, surplus of the filled-up last batch cut off."""
    collected: list[list[Array]] = []
    for batch in batches:
        collected.append(runner(batch))
        advance(len(batch))
    return [np.concatenate(parts)[:total] for parts in zip(*collected, strict=True)]
