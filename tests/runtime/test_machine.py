"""What cmt_bench says of the machine that it measured on."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from control_groups import GROUPS, write_groups

from cmt.targets.machine import describe

STUB = Path(__file__).with_name("stubs") / "cuda_driver.cpp"
Describe = Callable[..., dict[str, Any]]


@pytest.fixture
def described(runtime: Path) -> Describe:
    """`described(root, **variables)`: what is said of a machine whose /proc is in `root`."""

    def run(root: Path, **variables: str) -> dict[str, Any]:
        result = subprocess.run(
            [runtime / "tests" / "describe_machine", root],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(result.stdout)

    return run


INTEL = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) CPU\nflags\t\t: fpu avx2\n"
JETSON = "processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\nFeatures\t: fp asimd asimddp\n"
PI = "processor\t: 0\nmodel name\t: ARMv7 Processor rev 3 (v7l)\nFeatures\t: half\n"
SERVER = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd i8mm\nCPU part\t: 0xd0c\n"
BOARD = b"NVIDIA Jetson Orin Nano Developer Kit\0"


@pytest.mark.parametrize(
    ("cpuinfo", "board", "cpu", "flags"),
    [
        (INTEL, None, "Intel(R) Xeon(R) CPU", ["avx2"]),
        (INTEL, BOARD, "Intel(R) Xeon(R) CPU", ["avx2"]),
        (JETSON, BOARD, "NVIDIA Jetson Orin Nano Developer Kit", ["asimd", "asimddp"]),
        (JETSON, None, "ARMv8 Processor rev 1 (v8l)", ["asimd", "asimddp"]),
        (JETSON, b"\0", "ARMv8 Processor rev 1 (v8l)", ["asimd", "asimddp"]),
        (PI, b"Raspberry Pi 4 Model B Rev 1.4\0", "Raspberry Pi 4 Model B Rev 1.4", []),
        (SERVER, b"A board", "A board", ["asimd", "i8mm"]),
        (SERVER, None, os.uname().machine, ["asimd", "i8mm"]),
        (SERVER, b"A\x1b[2J\xff board\0more", "A\ufffd[2J\ufffd board", ["asimd", "i8mm"]),
        ("", None, os.uname().machine, []),
    ],
)
def test_a_processor_without_a_name_has_its_boards(
    described: Describe,
    tmp_path: Path,
    cpuinfo: str,
    board: bytes | None,
    cpu: str,
    flags: list[str],
) -> None:
    (tmp_path / "proc" / "device-tree").mkdir(parents=True)
    (tmp_path / "proc" / "cpuinfo").write_text(cpuinfo)
    if board is not None:
        (tmp_path / "proc" / "device-tree" / "model").write_bytes(board)
    found = described(tmp_path)
    assert (found["cpu"], found["cpu_flags"]) == (cpu, flags)
    python = describe(seed=0, root=tmp_path)
    assert (python["cpu"], python["cpu_flags"]) == (cpu, flags)


@pytest.mark.parametrize("kind", GROUPS)
def test_a_limit_of_the_cpus_is_what_python_finds(
    described: Describe, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "sys" / "fs" / "cgroup").mkdir(parents=True)
    write_groups(tmp_path, GROUPS[kind][1])
    found, expected = described(tmp_path), describe(seed=0, root=tmp_path)
    for name in ("cpu_quota", "cores"):
        assert found[name] == expected[name], name


def test_this_machine_is_described_as_python_does(described: Describe) -> None:
    found, expected = described(Path("/")), describe(seed=0)
    for name in ("cpu", "cpu_flags", "cores", "memory_gb", "gpu"):
        assert found[name] == expected[name], name


def test_the_gpu_is_what_the_driver_says(described: Describe, tmp_path: Path) -> None:
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["c++", "-shared", "-fPIC", STUB, "-o", library], check=True)
    place = {"LD_LIBRARY_PATH": str(tmp_path)}
    assert described(Path("/"), **place)["gpu"] == "Orin, CUDA 12.6"
    assert described(Path("/"), **place, STUB_GPUS="0")["gpu"] is None
    library.write_bytes(b"no library")
    assert described(Path("/"), **place)["gpu"] is None
