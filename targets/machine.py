"""The machine and the software versions that a measurement belongs to."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict

from cmt.printing import printable
from cmt.targets.control_groups import cpu_quota, read_text
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


class Hardware(TypedDict):
    """What of a machine's environment tells it from another one."""

    cpu: str
    cpu_flags: list[str]
    cores: int
    memory_gb: float | None
    gpu: str | None


class _Environment(Hardware):
    python: str | None
    platform: str
    seed: int
    packages: dict[str, str]


class Environment(_Environment, total=False):
    """The report's `environment`."""

    cpu_quota: float | None
    gpu_power: str | None


def has_int8_dot_products(environment: Hardware) -> bool:
    """Whether the CPU of a `describe` has instructions that make INT8 fast."""
    return not set(environment["cpu_flags"]).isdisjoint(_DOT_PRODUCTS)


def cuts_int8_sums(environment: Hardware) -> bool:
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


def usable_cores(root: Path = Path("/")) -> int:
    """Logical CPUs that this process may keep busy, by affinity and by `cpu_quota`.

    A part of a CPU's time gets no thread of its own: all of them would wait for it in turn.
    """
    affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def _cpuinfo(root: Path) -> dict[str, str]:
    """What the first processor's lines say."""
    lines = read_text(root / "proc" / "cpuinfo").split("\n\n")[0].split("\n")
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _cpu_name(info: Mapping[str, str], root: Path) -> str:
    """The processor's name; on a board whose kernel gives none, or only an architecture's such as
    "ARMv8 Processor rev 1 (v8l)", the board's.
    """
    name = info.get("model name", "")
    if not name or name.startswith("ARMv"):
        name = read_text(root / "proc" / "device-tree" / "model").split("\0")[0] or name
    return printable(name or platform.processor() or platform.machine())


def _ask(*command: str) -> str | None:
    """What a tool of the driver prints; None without it."""
    if shutil.which(command[0]) is None:
        return None
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def ask_smi(fields: str) -> str | None:
    """What `nvidia-smi --query-gpu` says of these fields just now; None without it."""
    return _ask("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")


def _gpu() -> str | None:
    found = device.find_gpu()  # which Jetsons have without nvidia-smi
    by_driver = f"{found.name}, {found.driver}" if found is not None else None
    return ask_smi("name,driver_version") or by_driver


def _gpu_power() -> str | None:
    """What the GPU may draw and how fast it may run, not what it does just now."""
    mode = _ask("nvpmodel", "-q")
    if mode is not None:
        return mode.splitlines()[0]
    return ask_smi("power.limit,clocks.max.sm,clocks.max.memory")


def hardware(environment: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of an `environment`, or a comparison's row, stays the same with other software."""
    gpu = environment["gpu"]
    return (
        *(environment[key] for key in Hardware.__annotations__ if key != "gpu"),
        gpu and gpu.split(",")[0],  # the driver's version is behind it
    )


def describe(seed: int, root: Path = Path("/")) -> Environment:
    """The report's `environment`; `root` is where /proc and /sys are."""
    import psutil

    info = _cpuinfo(root)
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(info, root),
        "cpu_flags": [flag for flag in _FLAGS if flag in flags],
        "cores": usable_cores(root),
        "cpu_quota": cpu_quota(root),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": _gpu(),
        "gpu_power": _gpu_power(),
        "seed": seed,
        "packages": package_versions(),
    }
