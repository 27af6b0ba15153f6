"""Reading a Jetson's power while something runs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cmt.measure.power import sampled

# Lines of a Jetson Orin Nano (JetPack 6), shortened, and of a Jetson Nano (JetPack 4).
ORIN = "RAM 2448/7620MB (lfb 3x4MB) GR3D_FREQ 0% gpu@46.2C VDD_IN {}mW/4712mW VDD_SOC 1421mW/1403mW"
NANO = "RAM 1169/3964MB (lfb 16x4MB) SWAP 0/1982MB EMC_FREQ 0% POM_5V_IN {}/2532 POM_5V_GPU 0/40"


@pytest.fixture
def tegrastats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tool of this name that prints the lines of a file and waits, as the real one does."""
    lines, tool = tmp_path / "lines", tmp_path / "tegrastats"
    tool.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\ncat {lines}\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return lines


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (ORIN, {"VDD_IN": [4000, 5000], "VDD_SOC": [1421, 1421]}),
        (NANO, {"POM_5V_IN": [4000, 5000], "POM_5V_GPU": [0, 0]}),
    ],
)
def test_each_rail_is_read_and_the_tool_stopped(
    tegrastats: Path, line: str, expected: dict[str, list[int]]
) -> None:
    tegrastats.write_text(f"{line.format(4000)}\n{line.format(5000)}\n")
    samples: dict[str, list[int]] = {}
    with sampled(samples):
        time.sleep(0.5)
    assert samples == expected
    pid = (tegrastats.parent / "pid").read_text().strip()
    assert not Path("/proc", pid).exists()


def test_a_machine_without_tegrastats_has_no_rails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    samples: dict[str, list[int]] = {}
    with sampled(samples):
        pass
    assert samples == {}
