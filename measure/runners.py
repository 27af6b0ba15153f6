"""Saved files loaded into something callable, one loader per runtime.

A runner maps a batch to the list of the network's outputs. The batch is normalised float32
(B, 3, H, W), or uint8 (B, H, W, 3) for a file with the preprocessing inside.
Each loader imports its runtime alone, so that a device needs only the one it has.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from measure.sessions import cpu_session, openvino_core

if TYPE_CHECKING:
    from torch import nn

    from cmt.network import CMT

Array = NDArray[np.float32]
Batch = NDArray[Any]
Runner = Callable[[Batch], list[Array]]
"""May be called from several threads at once, but for engines (`measure.engine`)."""
BATCH_SYMBOL = "batch"
"""What ONNX Runtime's files call their batch."""
Settings = Mapping[str, Any]
"""OpenVINO property names and values, or what `load_settings` says of an engine."""


class Loader(Protocol):
    """Loads a file to run on `threads` CPU threads; None takes the runtime's default settings.

    `batch` is the number of images per inference; None takes the file's own, or any where it
    has none. Torch and the simulation need not be told.
    """

    def __call__(
        self,
        path: Path,
        threads: int,
        settings: Settings | None = None,
        batch: int | None = None,
    ) -> Runner: ...


def torch_network(path: Path) -> CMT:
    """The reference network: `network.json` says how to build it, `weights.pt` is beside it."""
    import torch

    from cmt.network import build

    config = json.loads(path.read_text())
    model = build(**{**config, "img_size": tuple(config["img_size"])}).eval()
    model.load_state_dict(torch.load(path.with_name("weights.pt"), weights_only=True))
    return model


def load_torch(
    path: Path, threads: int, settings: Settings | None = None, batch: int | None = None
) -> Runner:
    """The reference network, run as it is."""
    import torch

    torch.set_num_threads(threads)
    return torch_runner(torch_network(path))


def torch_runner(model: nn.Module) -> Runner:
    """A network in evaluation mode, on the threads that torch has."""
    import torch

    def run(batch: Batch) -> list[Array]:
        with torch.inference_mode():
            outputs = model(torch.from_numpy(batch))
        return [t.numpy() for t in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return run


THREADS = "INFERENCE_NUM_THREADS"
"""OpenVINO's name for the number of CPU threads."""
STREAMS = "NUM_STREAMS"
"""OpenVINO's name for the number of inferences at a time."""
PRECISION = "INFERENCE_PRECISION_HINT"
"""OpenVINO's name for the type that it computes in where the file says float."""


def callers(settings: Settings) -> int:
    """How many call at once: one for each of OpenVINO's streams, one where it decides itself."""
    streams = str(settings.get(STREAMS, 1))
    return int(streams) if streams.isdecimal() else 1


def settings_of_run(own: Settings, threads: int, batch: int) -> dict[str, Any]:
    """Settings as the report gives them: a file's own (tuned) threads come before `threads`."""
    return {"threads": own.get(THREADS, threads), "batch": batch, **own}


# Float32 wherever the file says float: OpenVINO would otherwise pick BF16 by itself where the
# CPU has it, and the report would compare precisions that nobody asked for.
OPENVINO_SETTINGS: dict[str, Any] = {
    "PERFORMANCE_HINT": "LATENCY",
    STREAMS: 1,
    PRECISION: "f32",
}


def load_openvino(
    path: Path, threads: int, settings: Settings | None = None, batch: int | None = None
) -> Runner:
    """An IR file on the CPU, compiled with `settings` (`OPENVINO_SETTINGS` by default).

    A number of threads in the settings, as `measure.tune` finds it, comes before `threads`.
    """
    import openvino as ov

    core = openvino_core()
    model = core.read_model(path)
    if batch is not None and model.input(0).shape[0] != batch:
        model.reshape([batch, *list(model.input(0).shape)[1:]])
    properties = {THREADS: threads, **(settings or OPENVINO_SETTINGS)}
    compiled = core.compile_model(model, "CPU", properties)
    count = len(compiled.outputs)
    own = threading.local()
    own.request = compiled.create_infer_request()

    def run(images: Batch) -> list[Array]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        # What `infer([images])` does around it costs 2 % of CMT-Ti's time in INT8. Memory that
        # may not be written to cannot be shared.
        shared = np.require(images, requirements=("C_CONTIGUOUS", "WRITEABLE"))
        own.request.set_input_tensor(ov.Tensor(shared, shared_memory=True))
        own.request.infer(share_outputs=True, decode_strings=False)
        return [own.request.get_output_tensor(i).data.copy() for i in range(count)]

    return run


def load_onnxruntime(
    path: Path, threads: int, settings: Settings | None = None, batch: int | None = None
) -> Runner:
    """An ONNX file on ONNX Runtime's CPU provider with its default optimisations."""
    dimensions = {} if batch is None else {BATCH_SYMBOL: batch}
    return _session_runner(cpu_session(path, threads, dimensions=dimensions))


def load_simulation(
    path: Path, threads: int, settings: Settings | None = None, batch: int | None = None
) -> Runner:
    """An FP16 or Q/DQ graph on ONNX Runtime, in place of the GPU it is meant for."""
    from export.half import simulation_session

    return _session_runner(simulation_session(path, threads))


def _session_runner(session: Any) -> Runner:
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})


CUDA_GRAPH = "cuda_graph"
"""A setting of engines: `on` launches all kernels of a run as one, `off` one by one."""


def load_tensorrt(
    path: Path, threads: int, settings: Settings | None = None, batch: int | None = None
) -> Runner:
    """An engine on GPU 0, for one caller; `settings` come from `load_settings`."""
    from measure.engine import load_engine

    return load_engine(path, settings or {}, batch)


SIMULATED = "onnxruntime (simulated)"
LOADERS: dict[str, Loader] = {
    "torch": load_torch,
    "openvino": load_openvino,
    "onnxruntime": load_onnxruntime,
    "tensorrt": load_tensorrt,
    SIMULATED: load_simulation,
}


def missing_runtime(target: str) -> str | None:
    """Why this machine cannot run a target's files; None where it can."""
    if target == "tensorrt":
        from measure.engine import missing_tensorrt

        return missing_tensorrt()
    if target not in LOADERS:
        return f"running {target} files is not part of this version"
    if find_spec(target) is None:
        return f"{target} is not installed: pip install 'cmt-export[{target}]'"
    return None


def not_runnable(artefact: Mapping[str, Any]) -> str | None:
    """Why this machine cannot run a file of a manifest; None where it can."""
    reason = missing_runtime(artefact["target"])
    if reason is None and artefact["target"] == "tensorrt":
        from export.tensorrt import not_for_here

        mismatch = not_for_here(artefact)
        reason = mismatch and f"{mismatch}; cmt-bench without --verify builds one for this GPU"
    return reason


def load_settings(artefact: Mapping[str, Any], settings: Settings | None = None) -> Settings:
    """What a file's loader takes, where its settings are these, or the manifest's."""
    settings = artefact["settings"] if settings is None else settings
    if artefact["target"] == "tensorrt":
        from measure.engine import engine_settings

        return {**engine_settings(artefact), **settings}
    return settings


def run_all(
    runner: Runner, batches: Any, total: int, advance: Callable[[int], None]
) -> list[Array]:
    """All outputs of the first `total` images, surplus of the filled-up last batch cut off."""
    collected: list[list[Array]] = []
    for batch in batches:
        collected.append(runner(batch))
        advance(len(batch))
    return [np.concatenate(parts)[:total] for parts in zip(*collected, strict=True)]
