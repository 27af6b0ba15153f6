"""Records which TensorRT and CUDA names exist in which version, with their signatures.

    python tests/support/tensorrt_api.py WHEEL...     # writes tests/reference/tensorrt_api.json
    python tests/support/tensorrt_api.py --check WHEEL...

Wheels of bindings, from `pip download --no-deps tensorrt-cu12-bindings==10.3.0` and the like, for
this Python. Bindings import without TensorRT's libraries, which are not on the package index: each
symbol that they miss is put into an empty library, for importing calls none of them. What pybind11
then says of every function is what that version takes. `--check` compares and writes nothing.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

RECORD = Path(__file__).parents[1] / "reference" / "tensorrt_api.json"
NAMES = {
    "tensorrt": """
        Builder.__init__ Builder.build_serialized_network Builder.create_builder_config
        Builder.create_network Builder.create_optimization_profile Builder.num_DLA_cores
        BuilderFlag.GPU_FALLBACK BuilderFlag.VERSION_COMPATIBLE
        ComputeCapability.__members__
        DataType.FLOAT DataType.UINT8
        DeviceType.DLA
        HardwareCompatibilityLevel.AMPERE_PLUS
        IBuilderConfig.DLA_core IBuilderConfig.add_optimization_profile
        IBuilderConfig.builder_optimization_level IBuilderConfig.can_run_on_DLA
        IBuilderConfig.create_timing_cache IBuilderConfig.default_device_type
        IBuilderConfig.get_memory_pool_limit IBuilderConfig.get_timing_cache
        IBuilderConfig.hardware_compatibility_level IBuilderConfig.max_aux_streams
        IBuilderConfig.num_compute_capabilities IBuilderConfig.profiling_verbosity
        IBuilderConfig.progress_monitor
        IBuilderConfig.set_compute_capability IBuilderConfig.set_flag
        IBuilderConfig.set_memory_pool_limit IBuilderConfig.set_timing_cache
        ICudaEngine.create_execution_context ICudaEngine.get_tensor_dtype
        ICudaEngine.get_tensor_mode ICudaEngine.get_tensor_name
        ICudaEngine.get_tensor_profile_shape ICudaEngine.get_tensor_shape
        ICudaEngine.num_io_tensors
        IExecutionContext.execute_async_v3 IExecutionContext.get_tensor_shape
        IExecutionContext.set_input_shape IExecutionContext.set_tensor_address
        ILayer.name
        INetworkDefinition.get_input INetworkDefinition.get_layer INetworkDefinition.num_layers
        IOptimizationProfile.set_shape
        ITensor.name ITensor.shape
        ILogger.__init__ ILogger.Severity.WARNING ILogger.log
        IProgressMonitor.__init__ IProgressMonitor.phase_finish IProgressMonitor.phase_start
        IProgressMonitor.step_complete
        ITimingCache.serialize
        MemoryPoolType.WORKSPACE
        NetworkDefinitionCreationFlag.STRONGLY_TYPED
        OnnxParser.__init__ OnnxParser.get_error OnnxParser.num_errors OnnxParser.parse
        ParserError.desc ParserError.node_name ParserError.node_operator
        ProfilingVerbosity.DETAILED
        Runtime.DLA_core Runtime.__init__ Runtime.deserialize_cuda_engine
        Runtime.engine_host_code_allowed
        TensorIOMode.INPUT
    """,
    "cuda": """
        cudaError_t.cudaSuccess cudaEventCreate cudaEventDestroy cudaEventElapsedTime
        cudaEventRecord cudaFree cudaFreeHost cudaGetErrorString cudaGraphDestroy
        cudaGraphExecDestroy cudaGraphInstantiate cudaGraphLaunch cudaMalloc cudaMallocHost
        cudaMemcpyAsync cudaMemcpyKind.cudaMemcpyDeviceToHost
        cudaMemcpyKind.cudaMemcpyHostToDevice cudaStreamBeginCapture
        cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal cudaStreamCreateWithFlags
        cudaStreamDestroy cudaStreamEndCapture cudaStreamNonBlocking cudaStreamSynchronize
    """,
}
Record = dict[str, dict[str, str]]
"""Name -> signature -> the versions that have it so."""


def main(arguments: list[str]) -> None:
    """Record or check what these wheels, and the installed TensorRT-RTX, hold."""
    wheels = [Path(argument) for argument in arguments if argument != "--check"]
    record = read_all(wheels)
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    if "--check" not in arguments:
        RECORD.write_text(text)
    elif text != RECORD.read_text():
        sys.exit(f"{RECORD} does not say what these wheels hold")


def read_all(wheels: list[Path]) -> Record:
    """What every wheel holds of `NAMES`, each read in a process of its own."""
    record: Record = {}
    for wheel in [*wheels, None]:
        command = [sys.executable, __file__, "--read", *([] if wheel is None else [str(wheel)])]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        for name, signature in found["names"].items():
            signatures = record.setdefault(name, {})
            before = f"{signatures[signature]}, " if signature in signatures else ""
            signatures[signature] = before + found["version"]
    return record


def read(wheel: Path | None) -> dict[str, Any]:
    """The version of a wheel of bindings, of the installed TensorRT-RTX for None, and its names."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = "tensorrt"
        if wheel is None:
            module = importlib.import_module("tensorrt_rtx")
            version = f"tensorrt_rtx {module.__version__}"
        else:
            with zipfile.ZipFile(wheel) as file:
                file.extractall(folder)
            package, number = wheel.name.split("-")[:2]
            version = f"{re.sub('_cu[0-9]+|_bindings', '', package)} {number}"
            if package == "cuda_bindings":
                library = "cuda"
                sys.path.insert(0, str(folder))
                module = importlib.import_module("cuda.bindings.runtime")
            else:
                module = _import_alone(next(folder.glob("tensorrt*_bindings/tensorrt*.so")))
        names = {n: s for n in NAMES[library].split() if (s := signature_of(module, n)) is not None}
        return {"version": version, "names": names}


def _import_alone(binding: Path) -> ModuleType:
    """Import a binding whose libraries are not there."""
    listing = subprocess.run(["readelf", "-d", binding], capture_output=True, text=True, check=True)
    libraries = re.findall(r"\[(libnv\S+)\]", listing.stdout)
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", binding], capture_output=True, text=True, check=True
    )
    symbols = re.findall(
        r" U (\w*(?:INTERNAL|Registry|Version|Plugins|nvcaffe\w*|nvuff\w*))$", listing.stdout, re.M
    )
    source = "".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols)
    for name in libraries:
        path = binding.with_name(name)
        command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", path, f"-Wl,-soname,{name}"]
        subprocess.run(command, input=source, text=True, check=True)
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(binding.parent))
    return importlib.import_module(binding.stem)


def signature_of(module: ModuleType, name: str) -> str | None:
    """Such as `(self, flags=0)`, overloads joined by ` or `; `value` for what is not called."""
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            return None
        found = getattr(found, part)
    if not callable(found) or isinstance(found, type):
        return "value"
    last = name.rsplit(".", 1)[-1]
    calls = re.findall(rf"^(?:\d+\. )?{last}\((.*)\)(?: ->.*)?$", found.__doc__ or "", re.M)
    calls = [call for call in calls if call != "*args, **kwargs"]
    return " or ".join(f"({', '.join(map(_parameter, _split(call)))})" for call in calls)


def _split(parameters: str) -> list[str]:
    """At the commas that are in no bracket."""
    parts, depth = [""], 0
    for char in parameters:
        depth += (char in "[<(") - (char in "]>)")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


def _parameter(text: str) -> str:
    """Its name, and its default where it has one; types are spelled in every version anew."""
    declared, _, default = text.partition("=")
    name = declared.split(":")[0].split()[-1]
    return f"{name}={default.strip().split('.')[-1].split(':')[0]}" if default else name


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        print(json.dumps(read(Path(sys.argv[2]) if sys.argv[2:] else None)))
    else:
        main(sys.argv[1:])
