"""GPU 0, asked of its driver without any library of NVIDIA's."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """GPU 0 as its driver describes it.

    Attributes:
        arch: compute capability, such as `sm86`.
        driver: the highest CUDA version that the driver supports, such as `CUDA 12.6`.
        integrated: it shares the processor's memory, as a Jetson's does.
    """

    arch: str
    name: str
    driver: str
    integrated: bool = False


def find_gpu() -> Gpu | None:
    """GPU 0 from the NVIDIA driver; None without driver or GPU."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    device, major, minor, version, integrated = (ctypes.c_int() for _ in range(5))
    name = ctypes.create_string_buffer(256)
    # Attributes 75 and 76 are the compute capability's major and minor number, 18 is `integrated`.
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(integrated), 18, device)
        or driver.cuDeviceGetName(name, len(name), device)
        or driver.cuDriverGetVersion(ctypes.byref(version))
    )
    if failed:
        return None
    return Gpu(
        f"sm{major.value}{minor.value}",
        name.value.decode(),
        f"CUDA {version.value // 1000}.{version.value % 1000 // 10}",
        bool(integrated.value),
    )
