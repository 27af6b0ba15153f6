"""TensorRT's row of the table: what the rest of the program asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cmt.errors import InputError
from cmt.targets.base import (
    BuildRequest,
    GpuAdvice,
    OnDevice,
    Prediction,
    Runner,
    Served,
    Target,
    Task,
)
from cmt.targets.entries import Built, Entry
from cmt.targets.settings import CUDA_GRAPH, Settings
from cmt.targets.tensorrt import device
from cmt.targets.tensorrt.library import DEFAULT_ARCHS, availability, not_for_here

# Tensor cores' tiles: NVIDIA, "Matrix Multiplication Background User's Guide".
_ALIGNMENT = {"fp16": 8, "int8": 16}


def _load(
    path: Path, threads: int, settings: Settings | None = None, batch: int | None = None
) -> Runner:
    """An engine on GPU 0, for one caller; `settings` come from `load_settings`."""
    from cmt.targets.tensorrt.engine import load_engine

    return load_engine(path, settings or {}, batch)


def _missing_runtime() -> str | None:
    from cmt.targets.tensorrt.engine import missing_tensorrt

    return missing_tensorrt()


def _load_settings(artefact: Entry, own: Settings) -> Settings:
    from cmt.targets.tensorrt.engine import engine_settings

    return {**engine_settings(artefact), **own}


def _build(request: BuildRequest) -> Built:
    from cmt.targets.tensorrt.build import build_engine
    from cmt.targets.tensorrt.made_here import record

    archs = request.gpu_archs or DEFAULT_ARCHS
    info = build_engine(request.graph, request.path, archs, batches=request.batches)
    with suppress(InputError):  # without a record, whoever runs it here has it built anew
        record(request.path)
    return info


def _missing() -> str | None:
    found = availability()
    return found.reason if found.library is None else None


def _unsupported(graph: Path) -> list[str]:
    from cmt.targets.tensorrt.build import unsupported

    return unsupported(graph)


def _not_timed() -> str:
    if availability().gpu is None:
        return "no NVIDIA GPU on this machine"
    return "engines are timed by cmt-bench"


def _not_for_here(artefact: Entry) -> str | None:
    mismatch = not_for_here(artefact)
    return mismatch and f"{mismatch}; cmt-bench without --verify builds one for this GPU"


def _refuses_batch(artefact: Entry, usual: int, batch: int) -> str | None:
    least, _, most = artefact.get("batches", (usual, usual, usual))
    if least <= batch <= most:
        return None
    takes = f"the engine takes {least} to {most}" if least < most else f"it takes {least}"
    return f"{takes} images at once: export with --batch {batch}"


def _ways(artefact: Entry) -> list[Settings]:
    """With a CUDA graph and without; what an engine gave up speed for stands beside it."""
    built: dict[str, str | int] = {}
    if "compatible" in artefact:
        built["compatible"] = ", ".join(artefact["compatible"])
    if "dla" in artefact:
        built["dla"] = artefact["dla"]["core"]
    least, _, most = artefact.get("batches", (1, 1, 1))
    # Where the batch may change, TensorRT-RTX compiles the best kernels while the first ones run:
    # a graph would keep the first.
    alone = least < most and "tensorrt_rtx" in artefact["built_with"]
    return [{**built, CUDA_GRAPH: graph} for graph in (("off",) if alone else ("on", "off"))]


def _outdated(artefact: Entry, graph_sha256: str, settings: Any) -> bool:
    """Whether an engine cannot be loaded here, or is not what the `BuildSettings` ask for.

    What these leave open stays as it is.
    """
    if not_for_here(artefact, graph_sha256) is not None:
        return True
    compatible = set(settings.compatible) <= set(artefact.get("compatible", ()))
    core = artefact["dla"]["core"] if "dla" in artefact else None
    return not (compatible and settings.dla in (None, core))


def _rebuild(graph: Path, path: Path, artefact: Entry, settings: Any, task: Task) -> Built:
    from cmt.targets.tensorrt.build import build_engine
    from cmt.targets.tensorrt.made_here import record

    gpu, batches = device.find_gpu(), artefact.get("batches")
    archs = [] if gpu is None else [gpu.arch]
    info = build_engine(graph, path, archs, settings, task, batches and tuple(batches))
    record(path)
    return info


def _distrusted(artefact: Entry) -> str | None:
    from cmt.targets.tensorrt.made_here import UNTRUSTED, is_recorded

    if is_recorded(artefact["sha256"]):
        return None
    return f"{UNTRUSTED}: give --trust its signer's key; cmt-bench without --verify builds another"


def _notes(artefact: Entry) -> list[str]:
    """Of an engine that uses a DLA core, the layers that it cannot run."""
    if "dla" not in artefact:
        return []
    dla, elsewhere = artefact["dla"], artefact["dla"]["on_gpu"]
    count = dla["layers"] - len(elsewhere)
    return [
        f"{artefact['path']}: DLA core {dla['core']} can run {count} of {dla['layers']} "
        f"layers; on the GPU: {', '.join(elsewhere) or 'none'}"
    ]


def _predict(graph: Path, archs: Sequence[str], batch: int) -> Prediction | None:
    from cmt.targets.tensorrt.record import GPUS, predict, read_record

    arch = next((arch for arch in archs or DEFAULT_ARCHS if arch in GPUS), None)
    if arch is None or availability().library != "tensorrt_rtx":
        return None
    record, rates = read_record(graph, arch, batch), GPUS[arch]
    macs = record.macs
    return {
        "gpu": rates.name,
        "ms": 1e3 * predict(record, rates),
        "launches": len(record.launches),
        "syncs": record.syncs,
        "moved": record.moved,
        "constants": record.constants,
        "int8": macs.get("Int8", 0) / sum(macs.values()),
    }


def _doubts(aligned: float, batch: int) -> list[str]:
    """Rules of thumb from what others measured on vision transformers; no GPU was asked."""
    found = []
    if batch < 8:
        found.append(f"at batch {batch} others measured little gain or a loss")
    if aligned < 0.5:
        found.append("most channels do not fill the tensor cores")
    return found


def _not_served(artefact: Entry) -> str | None:
    """Triton's backend and DeepStream are of TensorRT itself."""
    if "tensorrt_rtx" in artefact["built_with"]:
        return "it was built with TensorRT-RTX: have cmt-bench build it with TensorRT on its GPU"
    return None


TARGET = Target(
    "tensorrt",
    graphs={"fp32": "simplified", "fp16": "half", "int8": "products-qdq-half"},
    suffix="engine",
    missing=_missing,
    build=_build,
    load=_load,
    missing_runtime=_missing_runtime,
    simulated=True,
    not_timed=_not_timed,
    unsupported=_unsupported,
    takes_batch_range=True,
    not_for_here=_not_for_here,
    distrusted=_distrusted,
    load_settings=_load_settings,
    refuses_batch=_refuses_batch,
    ways=_ways,
    one_caller=True,
    served={
        "triton": Served("model.plan", "tensorrt", "KIND_GPU"),
        "deepstream": Served("model.engine"),
    },
    not_served=_not_served,
    on_device=OnDevice(outdated=_outdated, build=_rebuild, notes=_notes),
    gpu_advice=GpuAdvice(alignment=_ALIGNMENT, predict=_predict, doubts=_doubts),
)
