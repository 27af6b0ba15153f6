"""Engines built from ONNX files, in the precisions that the graphs state."""

from __future__ import annotations

import importlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cmt.errors import GateError, InputError
from cmt.files import sha256_file, write_whole
from cmt.targets.base import Task
from cmt.targets.entries import Built, Reach
from cmt.targets.tensorrt.library import Availability, make_logger, needed, network_flags


@dataclass(frozen=True)
class BuildSettings:
    """How to build.

    Attributes:
        workspace_mb: memory that a layer may use, 2^20 bytes; None takes all of the GPU's.
        level: optimisation level, 0 (quick build) to 5; None takes TensorRT's default.
        cache: folder for the timings of kernels, by GPU and version; None keeps none.
        compatible: `version` for an engine that newer TensorRT runs too, `hardware` for one that
            any GPU from Ampere on runs, and Jetsons do not. Either may make it slower (NVIDIA,
            TensorRT documentation, "Engine Compatibility").
        dla: number of the DLA core that is given what it can run, the GPU the rest; None builds for
            the GPU alone.
    """

    workspace_mb: int | None = None
    level: int | None = None
    cache: Path | None = None
    compatible: tuple[str, ...] = ()
    dla: int | None = None


def build_engine(
    onnx_path: Path,
    out: Path,
    archs: Sequence[str],
    settings: BuildSettings | None = None,
    task: Task | None = None,
    batches: Sequence[int] | None = None,
) -> Built:
    """Build an engine from an ONNX file, in the precisions that the graph states.

    Args:
        onnx_path: one file, weights inside.
        out: the engine; replaced only when the build succeeds.
        archs: GPUs to build for, from `parse_archs`; TensorRT proper ignores them and builds
            for the GPU of this machine.
        task: shows the phases of the build.
        batches: the least, usual and most images of a graph whose batch is a symbol; None: fixed.

    Returns the manifest's fields: `built_with`, `built_for`, `onnx_sha256`, `gpu` and `driver`
    where the engine is for this machine's GPU, `seconds`, `workspace_bytes`, and `messages`, the
    library's different warnings and errors.

    Raises InputError when TensorRT is missing, cannot read the graph, lacks GPU memory or has not
    what the settings ask for, GateError when the build fails.
    """
    found, settings = needed(), settings or BuildSettings()
    trt = importlib.import_module(str(found.library))
    messages: list[str] = []
    logger = make_logger(trt, messages)
    with interrupts_after() as arrived, ExitStack() as bars:
        builder = trt.Builder(logger)
        network = builder.create_network(network_flags(trt, found))
        _refuse_impossible(found, builder, settings, batches)
        # The parser owns the weights that the network refers to, so it lives until the build ends.
        parser = trt.OnnxParser(network, logger)
        _parse_all(parser, onnx_path)
        config = make_config(builder)
        built_for = _select_gpus(trt, found, config, archs)
        timings = _configure(trt, found, config, settings)
        _take_batches(builder, network, config, batches)
        on_gpu = _use_dla(trt, network, config, settings.dla)
        begin = time.perf_counter()
        if task is not None:
            config.progress_monitor = _make_monitor(trt, task, bars, arrived)
        engine = builder.build_serialized_network(network, config)
    if engine is None:
        _explain_failure(f"{found.library} built no engine from {onnx_path}", messages)
    _keep_timings(timings, config)
    _write(out, engine)
    return {
        "built_with": {str(found.library): str(found.version)},
        "built_for": built_for,
        "onnx_sha256": sha256_file(onnx_path),
        "seconds": round(time.perf_counter() - begin, 2),
        "workspace_bytes": config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
        "messages": messages,
        **_limits(found, settings, batches),
        **_on_dla(settings.dla, network, on_gpu),
    }


def make_config(builder: Any) -> Any:
    """How every engine is built: for one stream.

    With several, CMT-Ti at batch 32 has 40 signals and waits between them, for the few keys' layers
    to run beside the queries'; launches and bytes are the same (TensorRT-RTX 1.7.1).
    """
    config = builder.create_builder_config()
    config.max_aux_streams = 0
    return config


def _on_dla(core: int | None, network: Any, on_gpu: list[str]) -> Reach:
    if core is None:
        return {}
    return {"dla": {"core": core, "layers": network.num_layers, "on_gpu": on_gpu}}


def _limits(found: Availability, settings: BuildSettings, batches: Sequence[int] | None) -> Reach:
    """Fields of the manifest that say what an engine takes and where it runs."""
    limits: Reach = {} if batches is None else {"batches": list(batches)}
    if found.library == "tensorrt" and found.gpu is not None:
        limits |= {"gpu": found.gpu.name, "driver": found.gpu.driver}
    if settings.compatible:
        limits["compatible"] = list(settings.compatible)
    return limits


def _parse_all(parser: Any, path: Path) -> None:
    problems = _parse(parser, path)
    if problems:
        raise InputError(f"TensorRT cannot read {path}: {'; '.join(problems)}")


def unsupported(onnx_path: Path) -> list[str]:
    """What the parser of the TensorRT that builds here cannot read, a line for each node.

    Raises InputError when TensorRT is missing or the file cannot be read.
    """
    found = needed()
    trt = importlib.import_module(str(found.library))
    logger = make_logger(trt, [])
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags(trt, found))
    return _parse(trt.OnnxParser(network, logger), onnx_path)


def _refuse_impossible(
    found: Availability,
    builder: Any,
    settings: BuildSettings,
    batches: Sequence[int] | None,
) -> None:
    if found.library == "tensorrt_rtx" and (settings.compatible or settings.dla is not None):
        raise InputError(
            "TensorRT-RTX has no DLA and no engines for other versions, and names its GPUs by "
            "--gpu-arch: pip install tensorrt"
        )
    if settings.dla is not None and settings.dla >= builder.num_DLA_cores:
        raise InputError(
            f"there is no DLA core {settings.dla}: {found.library} {found.version} finds "
            f"{builder.num_DLA_cores} here, leave --dla out"
        )
    if settings.dla is not None and batches is not None:
        raise InputError("a DLA core takes no range of batches: export with one, --batch 8")
    if "hardware" in settings.compatible and found.gpu is not None and found.gpu.integrated:
        raise InputError(
            f"TensorRT has no hardware-compatible engines for {found.gpu.name}, whose memory is "
            "the processor's: leave --compatible hardware out"
        )


def _take_batches(builder: Any, network: Any, config: Any, batches: Sequence[int] | None) -> None:
    if batches is None:
        return
    source = network.get_input(0)
    image = tuple(source.shape)[1:]
    least, usual, most = ((batch, *image) for batch in batches)
    profile = builder.create_optimization_profile()
    profile.set_shape(source.name, least, usual, most)
    config.add_optimization_profile(profile)


def _use_dla(trt: Any, network: Any, config: Any, core: int | None) -> list[str]:
    """Give the DLA core what it can run; returns the names of the layers that it cannot."""
    if core is None:
        return []
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    layers = map(network.get_layer, range(network.num_layers))
    return [layer.name for layer in layers if not config.can_run_on_DLA(layer)]


def _configure(trt: Any, found: Availability, config: Any, settings: BuildSettings) -> Path | None:
    """Apply the settings; returns where the timings of this build are to be kept."""
    if settings.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mb << 20)
    if settings.level is not None:
        config.builder_optimization_level = settings.level
    if "version" in settings.compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if "hardware" in settings.compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    # TensorRT-RTX would ask for a GPU to time on, and times nothing that is built ahead of time.
    if settings.cache is None or found.library == "tensorrt_rtx" or found.gpu is None:
        return None
    name = "".join(c if c.isalnum() else "-" for c in found.gpu.name)
    path = settings.cache / f"tensorrt-{found.version}-{name}.timings"
    earlier = path.read_bytes() if path.is_file() else b""
    # Not for this GPU or version after all, or damaged: TensorRT says so and starts afresh.
    cache = config.create_timing_cache(earlier) or config.create_timing_cache(b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return path


def _keep_timings(path: Path | None, config: Any) -> None:
    if path is not None:
        with suppress(OSError):  # a cache that cannot be kept costs time, not the engine
            _write(path, config.get_timing_cache().serialize())


def _explain_failure(what: str, messages: Sequence[str]) -> NoReturn:
    last = messages[-1] if messages else "it gave no reason"
    if any("memory" in message.lower() for message in messages if message.startswith("error")):
        raise InputError(f"{what}, short of GPU memory ({last}): free some, or set --workspace")
    raise GateError(f"{what}: {last}")


@contextmanager
def interrupts_after() -> Iterator[list[int]]:
    """SIGINT and SIGTERM, whose numbers it yields as they arrive, take effect at the end.

    Before, the exception would be raised in a callback, and native code goes on after those.
    A signal that the process ignores, as a shell's background jobs do Ctrl-C, stays ignored.
    """
    arrived: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield arrived  # which no signal interrupts
        return
    handlers = {
        number: signal.signal(number, lambda number, _: arrived.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield arrived
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


def _make_monitor(trt: Any, task: Task, bars: ExitStack, arrived: Sequence[int]) -> Any:
    """A bar for each phase that is not part of another one; what `arrived` ends the build."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.advance: dict[str, Callable[[int], None]] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self.advance[phase_name] = bars.enter_context(task(phase_name, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.advance:
                self.advance[phase_name](1)
            return not arrived

        def phase_finish(self, phase_name: str) -> None:
            self.advance.pop(phase_name, None)

    return Monitor()


def _parse(parser: Any, path: Path) -> list[str]:
    """Parse into the parser's network; returns a line for each node that it cannot read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if parser.parse(content):
        return []
    return [_describe(parser.get_error(i)) for i in range(parser.num_errors)] or ["no ONNX"]


def _describe(problem: Any) -> str:
    node = " ".join(part for part in (problem.node_operator(), problem.node_name()) if part)
    description = " ".join(problem.desc().split())
    return f"{node}: {description}" if node else description


def _select_gpus(trt: Any, found: Availability, config: Any, archs: Sequence[str]) -> list[str]:
    if found.library == "tensorrt" and found.gpu is not None:
        return [found.gpu.arch]
    known = trt.ComputeCapability.__members__
    config.num_compute_capabilities = len(archs)
    for i, arch in enumerate(archs):
        if arch.upper() not in known:
            raise InputError(f"{found.library} {found.version} does not build for {arch}")
        config.set_compute_capability(known[arch.upper()], i)
    return list(archs)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
