"""What the report says of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from control_groups import GROUPS, write_groups

from cmt.targets.machine import cpu_quota, describe, usable_cores
from cmt.targets.tensorrt import device
from cmt.targets.tensorrt.device import Gpu


def put_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    tool = folder / name
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_machine_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(device, "find_gpu", lambda: None)
    found = describe(seed=0)
    assert found["gpu"] is found["gpu_power"] is None


def test_a_jetson_says_its_gpu_and_power_mode(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_on_path(tmp_path, monkeypatch, "nvpmodel", "echo 'NV Power Mode: MAXN'; echo 0")
    monkeypatch.setattr(device, "find_gpu", lambda: Gpu("sm87", "Orin", "CUDA 12.6"))
    found = describe(seed=0)
    assert found["gpu"] == "Orin, CUDA 12.6"
    assert found["gpu_power"] == "NV Power Mode: MAXN"


def test_a_pc_says_its_driver_limit_and_clocks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_on_path(tmp_path, monkeypatch, "nvidia-smi", 'echo "$1"')
    found = describe(seed=0)
    assert found["gpu"] == "--query-gpu=name,driver_version"
    assert found["gpu_power"] == "--query-gpu=power.limit,clocks.max.sm,clocks.max.memory"


def test_a_tool_that_fails_is_as_good_as_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_on_path(tmp_path, monkeypatch, "nvpmodel", "echo half; exit 1")
    monkeypatch.setattr(device, "find_gpu", lambda: None)
    assert describe(seed=0)["gpu_power"] is None


@pytest.mark.parametrize("kind", GROUPS)
def test_a_limit_of_the_cpus_is_the_least_that_holds(kind: str, tmp_path: Path) -> None:
    quota, files = GROUPS[kind]
    (tmp_path / "sys" / "fs" / "cgroup").mkdir(parents=True)
    write_groups(tmp_path, files)
    assert cpu_quota(tmp_path) == describe(seed=0, root=tmp_path)["cpu_quota"] == quota


@pytest.mark.parametrize(("quota", "cores"), [(0.5, 1), (1.5, 1), (2.0, 2), (100.0, None)])
def test_threads_are_as_many_as_the_limit_has_whole_cpus(
    quota: float, cores: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    write_groups(tmp_path, {"": "0::/\n", "cpu.max": f"{int(quota * 100000)} 100000\n"})
    assert usable_cores(tmp_path) == describe(seed=0, root=tmp_path)["cores"] == (cores or 8)


def test_a_board_without_a_processors_name_gives_its_own(tmp_path: Path) -> None:
    (tmp_path / "proc" / "device-tree").mkdir(parents=True)
    (tmp_path / "proc" / "cpuinfo").write_text("model name\t: ARMv8 Processor rev 1 (v8l)\n")
    (tmp_path / "proc" / "device-tree" / "model").write_bytes(b"NVIDIA Jetson Orin Nano\0more")
    assert describe(seed=0, root=tmp_path)["cpu"] == "NVIDIA Jetson Orin Nano"
