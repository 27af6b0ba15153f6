"""The one module that knows TensorRT versions; no other file asks for one.

TensorRT-RTX builds ahead of time for GPUs that need not be present. TensorRT proper builds
on, and for, the GPU of this machine; that path is written from NVIDIA's documentation for 10
and 11 and has not been run on a GPU by this project. Both read the precision from the graph
(strong typing): FP16 and INT8 come from `export.half` and `quantize.qdq`.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmt.errors import GateError, InputError

DEFAULT_ARCHS = ("sm80", "sm86", "sm89", "sm120")
"""Ampere, Ada and Blackwell, what TensorRT-RTX covers by default; Turing (sm75) on request."""
_INSTALL = (
    "TensorRT is not installed: pip install tensorrt-rtx (engines ahead of time, no GPU "
    "needed), or on the machine with the GPU: pip install tensorrt"
)


@dataclass(frozen=True)
class Availability:
    """Which TensorRT builds engines here.

    Attributes:
        library: `tensorrt_rtx` or `tensorrt`; None when neither can build here.
        version: of the library, as it reports itself.
        reason: why `library` is None, and what to install.
        has_gpu: the NVIDIA driver reports at least one GPU.
    """

    library: str | None
    version: str | None
    reason: str | None
    has_gpu: bool


def availability() -> Availability:
    """Look for TensorRT: proper where there is a GPU to build on, else TensorRT-RTX."""
    has_gpu = _gpu_arch() is not None
    reason = _INSTALL
    for library in ("tensorrt", "tensorrt_rtx") if has_gpu else ("tensorrt_rtx", "tensorrt"):
        if importlib.util.find_spec(library) is None:
            continue
        try:
            version = importlib.import_module(library).__version__
        except (ImportError, OSError) as error:
            reason = f"{library} does not load ({error}): reinstall it"
            continue
        if library == "tensorrt" and not has_gpu:
            reason = "tensorrt builds only on its GPU and there is none: pip install tensorrt-rtx"
        elif library == "tensorrt" and int(version.split(".")[0]) < 10:
            reason = f"tensorrt {version} is too old: pip install 'tensorrt>=10'"
        else:
            return Availability(library, version, None, has_gpu)
    return Availability(None, None, reason, has_gpu)


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
    if importlib.util.find_spec("tensorrt_rtx") is None:
        raise InputError("GPU architectures are chosen for tensorrt-rtx: pip install tensorrt-rtx")
    names = importlib.import_module("tensorrt_rtx").ComputeCapability.__members__
    archs = [name.lower() for name in names if name.startswith("SM")]
    return tuple(sorted(archs, key=lambda arch: int(arch[2:])))


def build_engine(
    onnx_path: Path,
    out: Path,
    archs: Sequence[str],
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Build an engine from an ONNX file, in the precisions that the graph states.

    Args:
        onnx_path: one file, weights inside.
        out: the engine; replaced only when the build succeeds.
        archs: GPUs to build for, from `parse_archs`; TensorRT proper ignores them and builds
            for the GPU of this machine.
        progress: called with what is being done.

    Returns the manifest's fields: `built_with`, `built_for`, `seconds`, `workspace_bytes`,
    and `messages`, the library's different warnings and errors.

    Raises InputError when TensorRT is missing or cannot read the graph, GateError when the
    build fails.
    """
    found = availability()
    if found.library is None:
        raise InputError(str(found.reason))
    trt = importlib.import_module(found.library)
    report = progress or (lambda message: None)
    messages: list[str] = []
    logger = _make_logger(trt, messages)
    builder = trt.Builder(logger)
    report(f"{found.library} {found.version}: reading {onnx_path.name}")
    network = builder.create_network(_network_flags(trt, found))
    # The parser owns the weights that the network refers to, so it lives until the build ends.
    parser = trt.OnnxParser(network, logger)
    _parse(parser, onnx_path)
    config = builder.create_builder_config()
    built_for = _select_gpus(trt, found, config, archs)
    report(f"building for {', '.join(built_for)}")
    begin = time.perf_counter()
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise GateError(f"{found.library} built no engine from {onnx_path}: {_last(messages)}")
    _write(out, engine)
    return {
        "built_with": {found.library: found.version},
        "built_for": built_for,
        "seconds": round(time.perf_counter() - begin, 2),
        "workspace_bytes": config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
        "messages": messages,
    }


def _make_logger(trt: Any, messages: list[str]) -> Any:
    class Collector(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            line = f"{severity.name.lower()}: {' '.join(message.split())}"
            # The library repeats some warnings for every layer.
            if severity <= trt.ILogger.Severity.WARNING and line not in messages:
                messages.append(line)

    return Collector()


def _network_flags(trt: Any, found: Availability) -> int:
    """TensorRT 11 knows strong typing only; 10 and TensorRT-RTX 1 ask for it."""
    if found.library == "tensorrt" and int(str(found.version).split(".")[0]) >= 11:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _parse(parser: Any, path: Path) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not parser.parse(content):
        errors = (_describe(parser.get_error(i)) for i in range(parser.num_errors))
        raise InputError(f"TensorRT cannot read {path}: {'; '.join(errors)}")


def _describe(error: Any) -> str:
    node = " ".join(part for part in (error.node_operator(), error.node_name()) if part)
    description = " ".join(error.desc().split())
    return f"{node}: {description}" if node else description


def _select_gpus(trt: Any, found: Availability, config: Any, archs: Sequence[str]) -> list[str]:
    if found.library == "tensorrt":
        return [str(_gpu_arch())]
    config.num_compute_capabilities = len(archs)
    for i, arch in enumerate(archs):
        config.set_compute_capability(trt.ComputeCapability.__members__[arch.upper()], i)
    return list(archs)


def _write(path: Path, content: Any) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _last(messages: Sequence[str]) -> str:
    return messages[-1] if messages else "it gave no reason"


def _gpu_arch() -> str | None:
    """Architecture of GPU 0 (`sm86`) from the NVIDIA driver, None without driver or GPU."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return None
    values = [ctypes.c_int() for _ in range(3)]
    device, major, minor = values
    # Attributes 75 and 76 are the compute capability's major and minor number.
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    )
    return None if failed else f"sm{major.value}{minor.value}"
