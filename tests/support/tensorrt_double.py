"""TensorRT and the CUDA runtime, simulated at their boundary as each version describes itself.

`tensorrt_api.json` says which names a version has and how they are called; a double offers those
alone and refuses other arguments. Behind them is as little as a build and a run need: GPU memory is
host memory, and an engine computes what the test says.
"""

from __future__ import annotations

import ctypes
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from tensorrt_api import RECORD

VERSIONS = ("tensorrt 10.3.0", "tensorrt 10.13.3.9", "tensorrt 11.4.0.106")
CUDA_VERSIONS = ("cuda 12.9.10", "cuda 13.5.0")
Shapes = dict[str, tuple[int, ...]]


def _sums(images: np.ndarray) -> list[np.ndarray]:
    return [np.repeat(images.reshape(len(images), -1).sum(1)[:, None], 2, axis=1)]


@dataclass
class Machine:
    """What the libraries of one test do, what they were asked, and the GPU's memory.

    Attributes:
        engine: what a build gives; None for a build that fails.
        fails: names whose call fails: with None in TensorRT, with these words in CUDA.
        shapes: the engine's input, then its outputs, float32.
        compute: from the input to the outputs.
        asked: names of the calls, in order.
        layers: of the network, by name, and whether a DLA core can run them.
        profile: the least, usual and most of an input's shape that the engine takes.
        parsed: the ONNX file that was parsed last.
    """

    version: str
    engine: bytes | None = b"plan"
    fails: dict[str, str] = field(default_factory=dict)
    shapes: Shapes = field(default_factory=lambda: {"input": (1, 3, 32, 32), "logits": (1, 2)})
    compute: Callable[[np.ndarray], Sequence[np.ndarray]] = _sums
    asked: list[str] = field(default_factory=list)
    flags: int = 0
    config_flags: list[str] = field(default_factory=list)
    dla_cores: int = 0
    layers: dict[str, bool] = field(default_factory=lambda: {"conv": True, "softmax": False})
    profile: list[tuple[int, ...]] = field(default_factory=list)
    parsed: bytes = b""
    runtime: Any = None
    config: Any = None
    memory: dict[int, Any] = field(default_factory=dict)
    bound: dict[str, int] = field(default_factory=dict)
    captured: list[Callable[[], None]] | None = None
    logger: Any = None

    def array(self, name: str) -> np.ndarray:
        """What is in the GPU's memory for an input or output."""
        size = int(np.prod(self.shapes[name]))
        memory = (ctypes.c_float * size).from_address(self.bound[name])
        return np.frombuffer(memory, np.float32).reshape(self.shapes[name])

    def submit(self, work: Callable[[], None]) -> None:
        """Do it at once, or put it into the graph that is being captured."""
        if self.captured is None:
            work()
        else:
            self.captured.append(work)


def modules_of(machine: Machine, cuda: str) -> dict[str, ModuleType]:
    """What `sys.modules` holds where this TensorRT and CUDA are installed, on that machine."""
    runtime = make_cuda(machine, cuda)
    bindings: Any = ModuleType("cuda.bindings")
    bindings.runtime = runtime
    modules = {
        "tensorrt": make_tensorrt(machine),
        "cuda": ModuleType("cuda"),
        "cuda.bindings": bindings,
        "cuda.bindings.runtime": runtime,
    }
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None)
    return modules


def known_names(version: str) -> dict[str, str]:
    """Name -> signature, of one version."""
    return {
        name: signature
        for name, signatures in json.loads(RECORD.read_text()).items()
        for signature, versions in signatures.items()
        if version in versions.split(", ")
    }


def accepts(signature: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    """Whether one of the overloads takes these arguments, self left out."""
    for overload in signature.split(" or "):
        parameters = [part for part in overload.strip("()").split(", ") if part not in ("", "self")]
        declared = [
            inspect.Parameter(
                parameter.split("=")[0],
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=None if "=" in parameter else inspect.Parameter.empty,
            )
            for parameter in parameters
        ]
        try:
            inspect.Signature(declared).bind(*arguments, **keywords)
        except TypeError:
            continue
        return True
    return False


class _Severity(int):
    name = "ERROR"


def make_tensorrt(machine: Machine) -> ModuleType:
    """A module `tensorrt` of that version, on that machine."""
    names = known_names(machine.version)
    module: Any = ModuleType("tensorrt")
    module.__version__ = machine.version.split()[1]
    implementation = _TensorRt(machine, module)
    for owner in {name.split(".")[0] for name in names}:
        members = {n[len(owner) + 1 :]: s for n, s in names.items() if n.startswith(f"{owner}.")}
        setattr(module, owner, _class(owner, members, implementation))
    module.ILogger.Severity = SimpleNamespace(ERROR=_Severity(1), WARNING=_Severity(2))
    return module


def _class(owner: str, members: dict[str, str], implementation: _TensorRt) -> type:
    """A class with these members alone; what they do is `implementation.owner_member`."""
    machine = implementation.machine

    def method(member: str, signature: str) -> Any:
        def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
            name = f"{owner}.{member}"
            assert accepts(signature, arguments, keywords), (name, arguments, keywords)
            machine.asked.append(name)
            if name in machine.fails:
                machine.logger.log(machine.logger.Severity.ERROR, machine.fails[name])
                return None
            work = getattr(implementation, f"{owner}_{member.strip('_')}", lambda *_, **__: None)
            return work(*arguments, **keywords)

        return call

    values = {member for member, signature in members.items() if signature == "value"}

    def assign(self: Any, name: str, value: Any) -> None:
        if name not in values:
            raise AttributeError(f"{machine.version} has no {owner}.{name}")
        object.__setattr__(self, name, value)

    body: dict[str, Any] = {m: method(m, s) for m, s in members.items() if s != "value"}
    for member in values:
        if member.isupper():  # of an enumeration; the flag's number is TensorRT's own
            body[member] = 1 if member == "STRONGLY_TYPED" else f"{owner}.{member}"
        elif member == "num_io_tensors":
            body[member] = len(machine.shapes)
        elif member == "num_errors":
            body[member] = 0
        elif member == "num_layers":
            body[member] = len(machine.layers)
        elif member == "num_DLA_cores":
            body[member] = machine.dla_cores
    if owner not in ("ILogger", "IProgressMonitor"):  # these two are for users to extend
        body["__setattr__"] = assign
    return type(owner, (), body)


class _TensorRt:
    """What the methods do."""

    def __init__(self, machine: Machine, module: Any) -> None:
        self.machine, self.module = machine, module

    def _new(self, owner: str) -> Any:
        made = getattr(self.module, owner)
        return made.__new__(made)

    def Builder_init(self, logger: Any) -> None:  # noqa: N802
        self.machine.logger = logger

    Runtime_init = Builder_init

    def Builder_create_network(self, flags: int = 0) -> Any:  # noqa: N802
        self.machine.flags = flags
        return self._new("INetworkDefinition")

    def INetworkDefinition_get_layer(self, index: int) -> Any:  # noqa: N802
        layer = self._new("ILayer")
        layer.name = list(self.machine.layers)[index]
        return layer

    def INetworkDefinition_get_input(self, index: int) -> Any:  # noqa: N802
        tensor = self._new("ITensor")
        tensor.name = list(self.machine.shapes)[index]
        tensor.shape = (-1, *self.machine.shapes[tensor.name][1:])
        return tensor

    def Builder_create_optimization_profile(self) -> Any:  # noqa: N802
        return self._new("IOptimizationProfile")

    def IOptimizationProfile_set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:  # noqa: N802
        assert name == "input"
        self.machine.profile = list(shapes)

    def IBuilderConfig_set_flag(self, flag: str) -> None:  # noqa: N802
        self.machine.config_flags.append(flag)

    def IBuilderConfig_can_run_on_DLA(self, layer: Any) -> bool:  # noqa: N802
        return self.machine.layers[layer.name]

    def Builder_create_builder_config(self) -> Any:  # noqa: N802
        self.machine.config = self._new("IBuilderConfig")
        return self.machine.config

    def Builder_build_serialized_network(self, network: Any, config: Any) -> bytes:  # noqa: N802
        monitor = getattr(config, "progress_monitor", None)
        if monitor is not None:
            monitor.phase_start("building", None, 2)
            monitor.phase_start("a part", "building", 9)
            monitor.step_complete("a part", 0)
            monitor.phase_finish("a part")
            assert monitor.step_complete("building", 0)
            monitor.phase_finish("building")
        assert self.machine.engine is not None
        return self.machine.engine

    def OnnxParser_parse(self, model: bytes) -> bool:  # noqa: N802
        self.machine.parsed = model
        return True

    def IBuilderConfig_get_memory_pool_limit(self, pool: str) -> int:  # noqa: N802
        return 1 << 30

    def IBuilderConfig_create_timing_cache(self, earlier: bytes) -> Any:  # noqa: N802
        self.machine.asked.append(f"timings {earlier.decode()}")
        return self._new("ITimingCache")

    def IBuilderConfig_get_timing_cache(self) -> Any:  # noqa: N802
        return self._new("ITimingCache")

    def ITimingCache_serialize(self) -> bytes:  # noqa: N802
        return b"of kernels"

    def Runtime_deserialize_cuda_engine(self, plan: bytes) -> Any:  # noqa: N802
        return self._new("ICudaEngine")

    def ICudaEngine_create_execution_context(self) -> Any:  # noqa: N802
        return self._new("IExecutionContext")

    def ICudaEngine_get_tensor_name(self, index: int) -> str:  # noqa: N802
        return list(self.machine.shapes)[index]

    def ICudaEngine_get_tensor_shape(self, name: str) -> tuple[int, ...]:  # noqa: N802
        shape = self.machine.shapes[name]
        return (-1, *shape[1:]) if self.machine.profile else shape

    def ICudaEngine_get_tensor_profile_shape(self, name: str, index: int) -> Any:  # noqa: N802
        assert (name, index) == ("input", 0)
        return self.machine.profile

    def IExecutionContext_get_tensor_shape(self, name: str) -> tuple[int, ...]:  # noqa: N802
        return self.machine.shapes[name]

    def IExecutionContext_set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:  # noqa: N802
        least, _, most = (shape[0] for shape in self.machine.profile)
        if not least <= shape[0] <= most:
            self.machine.logger.log(self.machine.logger.Severity.ERROR, "not in the profile")
            return False
        for port, own in self.machine.shapes.items():
            self.machine.shapes[port] = (shape[0], *own[1:])
        return True

    def ICudaEngine_get_tensor_dtype(self, name: str) -> str:  # noqa: N802
        return "DataType.FLOAT"

    def ICudaEngine_get_tensor_mode(self, name: str) -> str:  # noqa: N802
        return f"TensorIOMode.{'INPUT' if name == 'input' else 'OUTPUT'}"

    def IExecutionContext_set_tensor_address(self, name: str, memory: int) -> bool:  # noqa: N802
        self.machine.bound[name] = memory
        return True

    def IExecutionContext_execute_async_v3(self, stream_handle: int) -> bool:  # noqa: N802
        def run() -> None:
            outputs = self.machine.compute(self.machine.array("input"))
            for name, values in zip(list(self.machine.shapes)[1:], outputs, strict=True):
                self.machine.array(name)[...] = values

        self.machine.submit(run)
        return True


def make_cuda(machine: Machine, version: str) -> ModuleType:
    """A module `cuda.bindings.runtime` of that version, on that machine."""
    module: Any = ModuleType("cuda.bindings.runtime")
    implementation = _Cuda(machine)
    for name, signature in known_names(version).items():
        owner, *member = name.split(".")
        if member:
            values = vars(module).setdefault(owner, SimpleNamespace())
            setattr(values, member[0], 0 if owner == "cudaError_t" else name)
        elif signature == "value":
            setattr(module, name, 1)
        else:
            setattr(module, name, _function(name, signature, implementation))
    return module


def _function(name: str, signature: str, implementation: _Cuda) -> Any:
    machine = implementation.machine

    def call(*arguments: Any) -> tuple[Any, ...]:
        assert accepts(signature, arguments, {}), (name, arguments)
        machine.asked.append(name)
        if name in machine.fails:
            return name, None
        return getattr(implementation, name, lambda *_: (0,))(*arguments)

    return call


class _Cuda:
    """What those functions do that do anything: each returns its status and its values."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def cudaMalloc(self, size: int) -> tuple[int, int]:  # noqa: N802
        block = ctypes.create_string_buffer(size)
        self.machine.memory[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    cudaMallocHost = cudaMalloc  # noqa: N815

    def cudaFree(self, address: int) -> tuple[int]:  # noqa: N802
        del self.machine.memory[address]
        return (0,)

    cudaFreeHost = cudaFree  # noqa: N815

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:  # noqa: N802
        return 0, 7

    def cudaEventCreate(self) -> tuple[int, int]:  # noqa: N802
        return 0, 8

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[int, float]:  # noqa: N802
        return 0, 0.25

    def cudaGetErrorString(self, error: str) -> tuple[int, bytes]:  # noqa: N802
        return 0, self.machine.fails[error].encode()

    def cudaMemcpyAsync(  # noqa: N802
        self, dst: int, src: int, count: int, kind: str, stream: int
    ) -> tuple[int]:
        self.machine.submit(lambda: ctypes.memmove(dst, src, count) and None)
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: str) -> tuple[int]:  # noqa: N802
        self.machine.captured = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:  # noqa: N802
        work, self.machine.captured = self.machine.captured, None
        return 0, work

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, Any]:  # noqa: N802
        return 0, graph

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[int]:  # noqa: N802
        for work in graph:
            work()
        return (0,)
