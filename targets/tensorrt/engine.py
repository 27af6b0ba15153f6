"""A TensorRT engine run on GPU 0: buffers, a stream, events, a CUDA graph.

Needs TensorRT, NumPy and cuda-bindings alone. Not run on a GPU by this project: what it calls is
held against the bindings of every version by tests, which also simulate the driver.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import weakref
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt.errors import InputError
from cmt.targets.base import Array, Batch
from cmt.targets.entries import Entry
from cmt.targets.settings import CUDA_GRAPH, Settings
from cmt.targets.tensorrt.library import availability, built_with, import_library, read_engine
from cmt.targets.tensorrt.made_here import UNTRUSTED, is_recorded


def missing_tensorrt() -> str | None:
    """Why this machine can run no engines; None where it can."""
    found = availability()
    if found.gpu is None:
        return "no NVIDIA GPU on this machine"
    if found.library is not None and (find_spec("cuda") and find_spec("cuda.bindings")) is None:
        return "cuda-bindings is not installed: pip install cuda-bindings"
    return found.reason


def engine_settings(artefact: Entry) -> Settings:
    """What `load_engine` is to know of an engine in a manifest."""
    library, _ = built_with(artefact)
    return {
        "library": library,
        "sha256": artefact["sha256"],
        "dla": artefact["dla"]["core"] if "dla" in artefact else None,
        "host_code": "version" in artefact.get("compatible", ()),
        CUDA_GRAPH: "on",
    }


def load_engine(path: Path, settings: Settings, batch: int | None) -> EngineRunner:
    """Load an engine; `settings` come from `engine_settings`.

    `batch` is the number of images per inference, None its usual one.

    The bytes that are hashed are those that TensorRT gets: engines are executable.

    Raises:
        InputError: nobody vouches for the file, it is not the manifest's, TensorRT refuses it,
            or the GPU has no driver or too little memory.
    """
    if not settings.get("trusted") and not is_recorded(settings["sha256"]):
        raise InputError(f"{path.name}: {UNTRUSTED}")
    plan = path.read_bytes()
    if hashlib.sha256(plan).hexdigest() != settings["sha256"]:
        raise InputError(f"{path.name} is not the file of this bundle: copy the bundle again")
    try:
        return EngineRunner(plan, settings, batch)
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error


def _bindings() -> Any:
    from cuda.bindings import runtime

    return runtime


def _cuda(function: str, *arguments: Any) -> Any:
    """Call the CUDA runtime; returns its value, if any. Raises InputError with its words."""
    cuda = _bindings()
    status, *values = getattr(cuda, function)(*arguments)
    if status != cuda.cudaError_t.cudaSuccess:
        _, words = cuda.cudaGetErrorString(status)
        text = words.decode() if isinstance(words, bytes) else str(words)
        raise InputError(
            f"the GPU reports '{text}' ({function}): mend its driver or free its memory"
        )
    return values[0] if values else None


class _Buffer:
    """An input or output: page-locked memory, seen as an array, and as much on the GPU."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any, closing: ExitStack) -> None:
        self.name = name
        self.bytes = math.prod(shape) * np.dtype(dtype).itemsize
        self.device = _cuda("cudaMalloc", self.bytes)
        closing.callback(_bindings().cudaFree, self.device)
        self._host = _cuda("cudaMallocHost", self.bytes)
        closing.callback(_bindings().cudaFreeHost, self._host)
        memory = (ctypes.c_byte * self.bytes).from_address(int(self._host))
        self.array: NDArray[Any] = np.frombuffer(memory, dtype).reshape(shape)

    def upload(self, stream: Any) -> None:
        self._copy(self.device, self._host, "cudaMemcpyHostToDevice", stream)

    def download(self, stream: Any) -> None:
        self._copy(self._host, self.device, "cudaMemcpyDeviceToHost", stream)

    def _copy(self, target: Any, source: Any, direction: str, stream: Any) -> None:
        kind = getattr(_bindings().cudaMemcpyKind, direction)
        _cuda("cudaMemcpyAsync", target, source, self.bytes, kind, stream)


class EngineRunner:
    """A `targets.base.Runner` for one caller; `gpu_ms` is what the GPU took for the last run.

    A call takes all that a program would wait for, the copies to the GPU and back included.
    `gpu_ms` is measured between two events around the network alone, without them.

    Args:
        plan: the engine's bytes, vouched for.
        settings: from `engine_settings`; with a CUDA graph, the run is captured at the first call
            and launched as one from then on.
        batch: images per inference, where the engine takes several; None takes its usual one.
    """

    def __init__(self, plan: bytes, settings: Settings, batch: int | None) -> None:
        self.gpu_ms = 0.0
        self._cuda_graph, self._launchable = settings[CUDA_GRAPH] == "on", None
        self._messages: list[str] = []
        self._closing = ExitStack()
        weakref.finalize(self, self._closing.close)
        library = settings["library"]
        trt = import_library(library)
        self._engine, self._runtime = read_engine(
            library, plan, self._messages, settings["dla"], settings["host_code"]
        )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failure("make a context")
        self._names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._is_input = {
            name: self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            for name in self._names
        }
        self._set_batch(batch)
        self._stream = _cuda("cudaStreamCreateWithFlags", _bindings().cudaStreamNonBlocking)
        self._closing.callback(_bindings().cudaStreamDestroy, self._stream)
        self._begin, self._end = self._make_event(), self._make_event()
        self._inputs: list[_Buffer] = []
        self._outputs: list[_Buffer] = []
        types = {trt.DataType.FLOAT: np.float32, trt.DataType.UINT8: np.uint8}
        for name in self._names:
            shape = tuple(self._context.get_tensor_shape(name))
            dtype = types.get(self._engine.get_tensor_dtype(name))
            if dtype is None or min(shape) < 1:
                raise InputError(f"its {name} is no float32 or uint8 array of a known shape")
            buffer = _Buffer(name, shape, dtype, self._closing)
            if not self._context.set_tensor_address(name, int(buffer.device)):
                raise self._failure("bind a buffer")
            (self._inputs if self._is_input[name] else self._outputs).append(buffer)

    def _set_batch(self, batch: int | None) -> None:
        """Choose the batch of an engine that takes several, and so the outputs' shapes."""
        for name in filter(self._is_input.get, self._names):
            shape = tuple(self._engine.get_tensor_shape(name))
            if shape[0] != -1:
                continue
            _, usual, _ = self._engine.get_tensor_profile_shape(name, 0)
            chosen = (batch or usual[0], *shape[1:])
            if not self._context.set_input_shape(name, chosen):
                raise InputError(f"the engine does not take {chosen[0]} images at once")

    def _make_event(self) -> Any:
        event = _cuda("cudaEventCreate")
        self._closing.callback(_bindings().cudaEventDestroy, event)
        return event

    def _failure(self, what: str) -> InputError:
        last = self._messages[-1] if self._messages else "it gave no reason"
        return InputError(f"TensorRT cannot {what} ({last}): is GPU memory short?")

    def __call__(self, images: Batch) -> list[Array]:
        (buffer,) = self._inputs
        if images.shape != buffer.array.shape or images.dtype != buffer.array.dtype:
            raise InputError(
                f"the engine takes {buffer.array.dtype} {buffer.array.shape}, "
                f"not {images.dtype} {images.shape}"
            )
        buffer.array[...] = images
        buffer.upload(self._stream)
        if self._cuda_graph and self._launchable is None:
            self._launchable = self._capture()
        _cuda("cudaEventRecord", self._begin, self._stream)
        if self._launchable is None:
            self._enqueue()
        else:
            _cuda("cudaGraphLaunch", self._launchable, self._stream)
        _cuda("cudaEventRecord", self._end, self._stream)
        for output in self._outputs:
            output.download(self._stream)
        _cuda("cudaStreamSynchronize", self._stream)
        self.gpu_ms = _cuda("cudaEventElapsedTime", self._begin, self._end)
        return [output.array.copy() for output in self._outputs]

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise self._failure("run")

    def _capture(self) -> Any:
        self._enqueue()  # sets up what must not happen during a capture
        _cuda("cudaStreamSynchronize", self._stream)
        mode = _bindings().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _cuda("cudaStreamBeginCapture", self._stream, mode)
        self._enqueue()
        graph = _cuda("cudaStreamEndCapture", self._stream)
        launchable = _cuda("cudaGraphInstantiate", graph, 0)
        self._closing.callback(_bindings().cudaGraphExecDestroy, launchable)
        _cuda("cudaGraphDestroy", graph)
        return launchable
