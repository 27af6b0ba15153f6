"""Which TensorRT is here, which engines it loads, and what differs between its versions."""

from __future__ import annotations

import importlib
import importlib.util
import re
from dataclasses import dataclass
from typing import Any

from cmt.errors import InputError
from cmt.targets.entries import Entry
from cmt.targets.tensorrt import device
from cmt.targets.tensorrt.device import Gpu

DEFAULT_ARCHS = ("sm80", "sm86", "sm89", "sm120")
"""Ampere, Ada and Blackwell, what TensorRT-RTX covers by default; Turing (sm75) on request."""


_INSTALL = (
    "TensorRT is not installed: pip install tensorrt-rtx (engines ahead of time, no GPU "
    "needed), or on the machine with the GPU: pip install tensorrt"
)


LIBRARIES = ("tensorrt", "tensorrt_rtx")
"""All that is ever imported: the name in a manifest chooses between these."""


@dataclass(frozen=True)
class Availability:
    """Which TensorRT builds engines here.

    Attributes:
        library: `tensorrt_rtx` or `tensorrt`; None when neither can build here.
        version: of the library, as it reports itself.
        reason: why `library` is None, and what to install.
        gpu: None where the NVIDIA driver reports none.
    """

    library: str | None
    version: str | None
    reason: str | None
    gpu: Gpu | None


def availability() -> Availability:
    """Look for TensorRT: proper where there is a GPU to build on, else TensorRT-RTX."""
    gpu = device.find_gpu()
    reason = _INSTALL
    for library in LIBRARIES if gpu else reversed(LIBRARIES):
        if not _is_installed(library):
            continue
        try:
            version = importlib.import_module(library).__version__
        except (ImportError, OSError, AttributeError) as error:
            reason = f"{library} does not load ({error}): reinstall it"
            continue
        if library == "tensorrt" and gpu is None:
            reason = "tensorrt builds only on its GPU and there is none: pip install tensorrt-rtx"
        elif library == "tensorrt" and _major(version) < 10:
            reason = (
                f"tensorrt {version} has no strong typing, which keeps FP32 islands and INT8 where "
                "the graph has them: pip install 'tensorrt>=10'"
            )
        else:
            return Availability(library, version, None, gpu)
    return Availability(None, None, reason, gpu)


def _is_installed(library: str) -> bool:
    # Even looking for a dotted name would import what is before the dot.
    return library in LIBRARIES and importlib.util.find_spec(library) is not None


def _major(version: str | None) -> int:
    return int(str(version).split(".")[0])


def not_for_here(engine: Entry, graph_sha256: str | None = None) -> str | None:
    """Why an engine of a manifest cannot be loaded on this machine; None where it can.

    TensorRT proper's engines are for one model of GPU, TensorRT-RTX's for compute capabilities;
    both are for one version, unless they were built to be compatible. The driver is recorded but
    not compared: engines outlive it.

    Args:
        engine: its entry in the manifest.
        graph_sha256: of the ONNX file that it should be built from, where that is known.
    """
    found = availability()
    if found.gpu is None:
        return "no NVIDIA GPU on this machine"
    library, version = built_with(engine)
    built = f"built with {library} {version} for {', '.join(engine['built_for'])}"
    if graph_sha256 not in (None, engine.get("onnx_sha256", graph_sha256)):
        return f"{built} from another ONNX file"
    if not _is_installed(library):
        return f"{built}; {library} is not installed here"
    ours = import_library(library).__version__
    gpu = found.gpu
    compatible = engine.get("compatible", ())
    same_version = ours == version or ("version" in compatible and _outlives(version, ours))
    if same_version and "hardware" in compatible and not gpu.integrated:
        return None if int(gpu.arch[2:]) >= 80 else f"{built} and later; this GPU is {gpu.arch}"
    if same_version and gpu.arch in engine["built_for"]:
        if engine.get("gpu", gpu.name) == gpu.name:
            return None
        return f"{built} ({engine['gpu']}); this GPU is {gpu.name}"
    return f"{built}; here are {library} {ours} and {gpu.arch}"


def built_with(engine: Entry) -> tuple[str, str]:
    """The library, one of `LIBRARIES`, and its version that an engine of a manifest names.

    Raises InputError where it names anything else, which is never imported.
    """
    named = list(engine["built_with"].items())
    if len(named) != 1 or named[0][0] not in LIBRARIES:
        raise InputError(
            f"{engine['path']} names no TensorRT that built it: export the bundle again"
        )
    return named[0]


def _outlives(built: str, running: str) -> bool:
    """Whether a version-compatible engine runs on another version.

    A newer one of the same major version, or TensorRT 11 for 10 (NVIDIA, TensorRT 11.4 support
    matrix, "Engine Portability").
    """
    older, newer = ([int(part) for part in re.findall(r"\d+", v)] for v in (built, running))
    return older <= newer and (older[0] == newer[0] or (older[0], newer[0]) == (10, 11))


def parse_archs(text: str) -> tuple[str, ...]:
    """`sm86,sm89` -> ("sm86", "sm89"), checked against the installed TensorRT-RTX.

    Raises InputError that lists the valid names.
    """
    archs = tuple(dict.fromkeys(arch.strip().lower() for arch in text.split(",") if arch.strip()))
    valid = _valid_archs()
    unknown = [arch for arch in archs if arch not in valid]
    if unknown or not archs:
        named = f"unknown GPU architecture '{unknown[0]}'" if unknown else "no GPU architecture"
        raise InputError(f"{named}: choose from {','.join(valid)}")
    return archs


def _valid_archs() -> tuple[str, ...]:
    if not _is_installed("tensorrt_rtx"):
        raise InputError("GPU architectures are chosen for tensorrt-rtx: pip install tensorrt-rtx")
    names = importlib.import_module("tensorrt_rtx").ComputeCapability.__members__
    archs = [name.lower() for name in names if name.startswith("SM")]
    return tuple(sorted(archs, key=lambda arch: int(arch[2:])))


def needed() -> Availability:
    """The TensorRT that builds here; raises InputError where there is none."""
    found = availability()
    if found.library is None:
        raise InputError(str(found.reason))
    return found


def import_library(name: str) -> Any:
    """One of `LIBRARIES`; raises InputError for another, one that is missing or does not load."""
    if name not in LIBRARIES:
        raise InputError(f"{name} is no TensorRT: export the bundle again")
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise InputError(f"{name} does not load ({error}): pip install {name}") from error


def read_engine(
    library: str,
    plan: bytes,
    messages: list[str],
    dla: int | None = None,
    host_code: bool = False,
) -> tuple[Any, Any]:
    """The engine in these bytes, and the runtime that must outlive it.

    The bytes must be vouched for: engines are executable.

    Args:
        library: `tensorrt` or `tensorrt_rtx`.
        messages: what the library says goes here.
        dla: core that its parts for the DLA run on.
        host_code: it is version-compatible, so it brings its own runtime, which is to be run.

    Raises InputError when the library refuses it: another GPU, another version, damage.
    """
    trt = import_library(library)
    logger = make_logger(trt, messages)
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = host_code
    if dla is not None:
        runtime.DLA_core = dla
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        cause = next((m for m in messages if m.startswith("error")), "it gave no reason")
        raise InputError(f"{library} {trt.__version__} cannot load the engine ({cause})")
    return engine, runtime


def make_logger(trt: Any, messages: list[str]) -> Any:
    """Collects warnings and errors, each once."""

    class Collector(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            line = f"{severity.name.lower()}: {' '.join(message.split())}"
            # The library repeats some warnings for every layer.
            if severity <= trt.ILogger.Severity.WARNING and line not in messages:
                messages.append(line)

    return Collector()


def network_flags(trt: Any, found: Availability) -> int:
    """TensorRT 11 knows strong typing only; 10 and TensorRT-RTX 1 ask for it."""
    if found.library == "tensorrt" and _major(found.version) >= 11:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
