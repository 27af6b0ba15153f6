"""The one table of targets: it drives the command line, the pipeline and the tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cmt.errors import InputError
from measure.parity import PRECISIONS
from measure.runners import SIMULATED
from measure.sessions import openvino_core


@dataclass(frozen=True)
class BuildRequest:
    """What a target builds a file from.

    Attributes:
        graph: the ONNX file of the stage that the target asks for.
        path: where the target's file goes; its folder exists.
        gpu_archs: compute capabilities such as `sm86`, for TensorRT-RTX.
        batches: the least, usual and most images per inference of an engine, whose graph takes any;
            None fixes them to the graph's.
    """

    graph: Path
    path: Path
    precision: str
    gpu_archs: Sequence[str]
    batches: tuple[int, int, int] | None


@dataclass(frozen=True)
class Target:
    """One row of the table.

    Attributes:
        graphs: precision -> the ONNX graph (a stage of the pipeline) that it is built from.
        always: precisions that are built even if not asked for, as the reference.
        rival: precision that is built beside int8, for it may be the faster one.
        suffix: of the built file.
        missing: None if the target can be built here, else what to install.
        build: writes the file, returns `built_with`, `built_for` and, where the runtime has any,
            the `settings` to run it with, for the manifest.
        runtime: which of `measure.runners.LOADERS` evaluates it.
        runs_graph: the ONNX graph is evaluated in place of the built file.
        not_timed: why no latency is taken here; None where it is.
        unsupported: what the target's own parser cannot read of a graph, a line each; None where
            the graph has run there already.
    """

    name: str
    graphs: Mapping[str, str]
    always: tuple[str, ...]
    suffix: str
    missing: Callable[[], str | None]
    build: Callable[[BuildRequest], dict[str, Any]]
    runtime: str
    runs_graph: bool = False
    not_timed: Callable[[], str] | None = None
    rival: str | None = None
    unsupported: Callable[[Path], list[str]] | None = None

    def precisions(self, asked: Sequence[str]) -> list[str]:
        """What gets built: the asked precisions that the target has, and its references."""
        wanted = {*self.always, *(asked or ["fp32"])}
        if "int8" in wanted and self.rival is not None:
            wanted.add(self.rival)
        return [precision for precision in PRECISIONS if precision in wanted & set(self.graphs)]


def _build_openvino(request: BuildRequest) -> dict[str, Any]:
    from export.openvino import build_ir

    return build_ir(request.graph, request.precision, request.path)


def _openvino_missing() -> str | None:
    from export.openvino import missing

    return missing()


def _openvino_unsupported(graph: Path) -> list[str]:
    try:
        openvino_core().read_model(graph)
    except RuntimeError as error:
        return [str(error)]
    return []


def _build_onnxruntime(request: BuildRequest) -> dict[str, Any]:
    import onnx
    import onnxruntime

    from export.onnx_graph import free_batch

    model = onnx.load(request.graph)
    free_batch(model)
    onnx.save(model, request.path)
    return {"built_with": {"onnxruntime": onnxruntime.__version__}, "built_for": ["CPU"]}


def _onnxruntime_missing() -> str | None:
    if find_spec("onnxruntime") is None:
        return "ONNX Runtime is not installed: pip install 'cmt-export[export]'"
    return None


def _build_tensorrt(request: BuildRequest) -> dict[str, Any]:
    from export.tensorrt import DEFAULT_ARCHS, build_engine

    archs = request.gpu_archs or DEFAULT_ARCHS
    return build_engine(request.graph, request.path, archs, batches=request.batches)


def _tensorrt_missing() -> str | None:
    from export.tensorrt import availability

    found = availability()
    return found.reason if found.library is None else None


def _tensorrt_unsupported(graph: Path) -> list[str]:
    from export.tensorrt import unsupported

    return unsupported(graph)


def _tensorrt_not_timed() -> str:
    from export.tensorrt import availability

    if availability().gpu is None:
        return "no NVIDIA GPU on this machine"
    return "engines are timed by cmt-bench"


TARGETS = {
    target.name: target
    for target in (
        Target(
            "openvino",
            graphs={
                "fp32": "rewritten-simplified",
                "fp16": "rewritten-simplified",
                "int8": "fitted-qdq",
            },
            always=("fp32",),
            rival="fp16",
            suffix="xml",
            missing=_openvino_missing,
            build=_build_openvino,
            runtime="openvino",
            unsupported=_openvino_unsupported,
        ),
        Target(
            "tensorrt",
            graphs={"fp32": "simplified", "fp16": "half", "int8": "qdq-half"},
            always=(),
            suffix="engine",
            missing=_tensorrt_missing,
            build=_build_tensorrt,
            runtime=SIMULATED,
            runs_graph=True,
            not_timed=_tensorrt_not_timed,
            unsupported=_tensorrt_unsupported,
        ),
        Target(
            "onnxruntime",
            graphs={"fp32": "simplified", "int8": "qdq"},
            always=("fp32",),
            suffix="onnx",
            missing=_onnxruntime_missing,
            build=_build_onnxruntime,
            runtime="onnxruntime",
        ),
    )
}


def get_target(name: str) -> Target:
    """Look up a target that can be built here; raises InputError otherwise."""
    if name not in TARGETS:
        raise InputError(f"unknown target '{name}': choose from {', '.join(TARGETS)}")
    reason = TARGETS[name].missing()
    if reason is not None:
        raise InputError(f"--target {name}: {reason}")
    return TARGETS[name]


def built_settings(folder: Path) -> dict[str, Any]:
    """What a built file is to be run with."""
    return json.loads((folder / "built.json").read_text()).get("settings", {})
