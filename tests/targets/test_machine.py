"""What the report says of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmt.targets.machine import describe
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
