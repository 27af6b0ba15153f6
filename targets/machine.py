"""The machine and the software versions that a measurement belongs to."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cmt.targets.tensorrt import device

PACKAGES = (
    "cmt-export",
    "numpy",
    "pillow",
    "torch",
    "safetensors",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxsim",
    "onnxruntime",
    "openvino",
    "nncf",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
)
NO_PEAK_RSS = "this system does not tell a process its peak memory"
HARDWARE = ("cpu", "cpu_flags", "cores", "memory_gb", "gpu")
"""What of a machine's environment tells it from another one."""

_DOT_PRODUCTS = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}
# Instruction sets that decide how fast, and on old CPUs how exact, INT8 and BF16 are.
_FLAGS = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
)


def has_int8_dot_products(environment: Mapping[str, Any]) -> bool:
    """Whether the CPU of a `describe` has instructions that make INT8 fast."""
    return not set(environment["cpu_flags"]).isdisjoint(_DOT_PRODUCTS)


def cuts_int8_sums(environment: Mapping[str, Any]) -> bool:
    """Whether the CPU of a `describe` adds 8-bit products in pairs in 16 bits, as x86 did first.

    Two of the largest take 17: what does not fit is cut off. Arm has instructions without this.
    """
    return "avx2" in environment["cpu_flags"] and not has_int8_dot_products(environment)


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that can change a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def usable_cores() -> int:
    """Logical CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    lines = path.read_text().split("\n\n")[0].splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _ask(*command: str) -> str | None:
    """What a tool of the driver prints; None without it."""
    if shutil.which(command[0]) is None:
        return None
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def _ask_smi(fields: str) -> str | None:
    return _ask("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")


def _gpu() -> str | None:
    found = device.find_gpu()  # which Jetsons have without nvidia-smi
    by_driver = f"{found.name}, {found.driver}" if found is not None else None
    return _ask_smi("name,driver_version") or by_driver


def _gpu_power() -> str | None:
    """What the GPU may draw and how fast it may run, not what it does just now."""
    mode = _ask("nvpmodel", "-q")
    if mode is not None:
        return mode.splitlines()[0]
    return _ask_smi("power.limit,clocks.max.sm,clocks.max.memory")


def hardware(environment: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of an `environment`, or a comparison's row, stays the same with other software."""
    gpu = environment["gpu"]
    return (
        *(environment[key] for key in HARDWARE if key != "gpu"),
        gpu and gpu.split(",")[0],  # the driver's version is behind it
    )


def describe(seed: int) -> dict[str, Any]:
    """The report's `environment`."""
    import psutil

    info = _cpuinfo()
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cpu_flags": [flag for flag in _FLAGS if flag in flags],
        "cores": usable_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": _gpu(),
        "gpu_power": _gpu_power(),
        "seed": seed,
        "packages": package_versions(),
    }
