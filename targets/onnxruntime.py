"""ONNX Runtime: ONNX files as they are, and sessions for whatever runs graphs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmt.targets.base import (
    BATCH_SYMBOL,
    BuildRequest,
    Runner,
    Served,
    Target,
    Way,
    missing_package,
)
from cmt.targets.entries import Built
from cmt.targets.machine import usable_cores
from cmt.targets.settings import CPU, DEVICE, Settings

if TYPE_CHECKING:
    import onnxruntime


AS_WRITTEN = {"session.disable_quant_qdq": "1"}
"""Q/DQ pairs round, and what is between them is computed in float32, the same on every CPU.

ONNX Runtime's INT8 kernels add products in pairs in 16 bits on CPUs without VNNI, and what does not
fit is cut off.
"""
MOST_AT_ONCE = 8
"""Images in `run_each`, all outputs of which are held: 18 MB each of CMT-Ti in calibration."""


_PROVIDER = "ExecutionProvider"
_REMOTE = "Azure"  # runs nothing here


def devices() -> list[str]:
    """The execution providers of this ONNX Runtime by their own names, such as CUDA; CPU first."""
    import onnxruntime

    found = (name.removesuffix(_PROVIDER) for name in onnxruntime.get_available_providers())
    return [CPU, *(name for name in found if name not in (CPU, _REMOTE))]


def cpu_session(
    model: Path | bytes,
    threads: int,
    entries: Mapping[str, str] | None = None,
    dimensions: Mapping[str, int] | None = None,
    device: str = CPU,
) -> onnxruntime.InferenceSession:
    """A graph loaded to run on the CPU with the default optimisations.

    Args:
        threads: of one inference; 0 takes all.
        entries: of the session's configuration.
        dimensions: sizes in place of symbols, by the symbol's name.
        device: of `devices`; the CPU runs what another one cannot.

    Raises:
        RuntimeError: the device's provider cannot be loaded.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    for name, value in (entries or {}).items():
        options.add_session_config_entry(name, value)
    for symbol, size in (dimensions or {}).items():
        options.add_free_dimension_override_by_name(symbol, size)
    provider = f"{device}{_PROVIDER}"
    with _in_utf8(model) as readable:
        session = onnxruntime.InferenceSession(readable, options, [provider])
    if provider not in session.get_providers():  # ONNX Runtime would go on with the CPU alone
        raise RuntimeError(f"ONNX Runtime cannot load its {provider}")
    return session


@contextmanager
def _in_utf8(model: Path | bytes) -> Iterator[Path | bytes]:
    """A graph where ONNX Runtime can open it: it takes no path that is not UTF-8."""
    if isinstance(model, bytes) or os.fsencode(model) == str(model).encode(errors="replace"):
        yield model
        return
    with TemporaryDirectory() as folder:
        link = Path(folder, "folder")
        link.symlink_to(model.parent.absolute(), target_is_directory=True)
        yield link / model.name


def run_each(
    model: bytes,
    outputs: Sequence[str] | None,
    batches: Iterable[NDArray[Any]],
    threads: int = 0,
) -> Iterator[tuple[NDArray[Any], list[NDArray[np.float32]]]]:
    """Every batch with the graph's outputs for it, in order, while the next ones are computed.

    Batches side by side, on a thread each, take half the time of one after the other on all
    threads, which wait for each other after every node (CMT-Ti in calibration, 2 CPUs).

    Args:
        model: an ONNX graph with one input; one with Q/DQ runs `AS_WRITTEN`.
        outputs: by name; None takes all.
        batches: float32 (B, 3, H, W) as the graph takes them, read ahead: each its own array.
        threads: of the CPU; 0 takes all.

    Raises what `batches` or ONNX Runtime raises, at that batch.
    """
    threads = threads or usable_cores()
    session = cpu_session(model, max(1, threads // MOST_AT_ONCE), AS_WRITTEN)
    source = session.get_inputs()[0].name
    running: deque[tuple[NDArray[Any], Future[list[NDArray[np.float32]]]]] = deque()
    with ThreadPoolExecutor(min(threads, MOST_AT_ONCE)) as pool:
        for batch in batches:
            running.append((batch, pool.submit(session.run, outputs, {source: batch})))
            # One more waits, so that no thread does while the caller has the first one's.
            if len(running) > min(threads, max(1, MOST_AT_ONCE // len(batch))):
                first, answer = running.popleft()
                yield first, answer.result()
        for first, answer in running:
            yield first, answer.result()


def load_onnxruntime(
    path: Path, threads: int, settings: Settings | None = None, batch: int | None = None
) -> Runner:
    """An ONNX file with the default optimisations, on the CPU or the `settings.DEVICE`."""
    dimensions = {} if batch is None else {BATCH_SYMBOL: batch}
    device = (settings or {}).get(DEVICE, CPU)
    return session_runner(cpu_session(path, threads, dimensions=dimensions, device=device))


def at_once(settings: Settings | None, threads: int) -> Way:
    """A batch on each CPU; on another device, one after the other."""
    on_cpu = (settings or {}).get(DEVICE, CPU) == CPU
    return Way(settings, 1, threads) if on_cpu else Way(settings, threads)


def session_runner(session: Any) -> Runner:
    """A session with one input as a runner."""
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})


def _build(request: BuildRequest) -> Built:
    import onnx
    import onnxruntime

    from cmt.targets.onnx_edit import free_batch

    model = onnx.load(request.graph)
    free_batch(model)
    onnx.save(model, request.path)
    return {"built_with": {"onnxruntime": onnxruntime.__version__}, "built_for": ["CPU"]}


def _missing() -> str | None:
    if find_spec("onnxruntime") is None:
        return "ONNX Runtime is not installed: pip install 'cmt-export[export]'"
    return None


TARGET = Target(
    "onnxruntime",
    graphs={"fp32": "simplified", "int8": "qdq"},
    suffix="onnx",
    missing=_missing,
    build=_build,
    load=load_onnxruntime,
    missing_runtime=partial(missing_package, "onnxruntime"),
    devices=devices,
    at_once=at_once,
    always=("fp32",),
    served={
        "triton": Served("model.onnx", "onnxruntime"),
        "ovms": Served("model.onnx"),
    },
)
