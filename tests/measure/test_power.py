"""Reading what a machine draws while something runs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cmt.measure import power
from cmt.measure.power import joules_per_image, no_meter, sampled

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


def test_a_gpus_draw_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As nvidia-smi prints it; where the board has no meter, it is no number."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '71.25\\n[N/A]\\n80.75\\n'\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    samples: dict[str, list[int]] = {}
    with sampled(samples, tmp_path):
        time.sleep(0.5)
    assert samples == {"GPU": [71250, 80750]}


def test_a_machine_without_a_meter_has_no_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    samples: dict[str, list[int]] = {}
    with sampled(samples, tmp_path):
        pass
    assert samples == {}
    assert joules_per_image(samples, 10) is None
    assert "no meter" in no_meter(tmp_path)


def zone(root: Path, number: int, joules: int) -> Path:
    """A package's folder, as Linux has it."""
    folder = root / "sys" / "class" / "powercap" / f"intel-rapl:{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"package-{number}\n")
    (folder / "energy_uj").write_text(f"{joules * 10**6}\n")
    return folder


def test_rapl_counts_energy_by_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    times = iter([100.0, 102.0])
    monkeypatch.setattr(power.time, "monotonic", lambda: next(times))
    zone(tmp_path, 0, 1000)
    zone(tmp_path, 1, 9000)
    samples: dict[str, list[int]] = {}
    with sampled(samples, tmp_path):
        zone(tmp_path, 0, 1030)
        zone(tmp_path, 1, 20)  # its counter has begun anew
    assert samples == {"RAPL package-0": [15_000]}
    assert joules_per_image({"RAPL package-0": 15_000}, 50) == {"RAPL package-0": 0.3}


def test_counters_that_may_not_be_read_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (zone(tmp_path, 0, 1) / "energy_uj").unlink()  # root may read all
    samples: dict[str, list[int]] = {}
    with sampled(samples, tmp_path):
        pass
    assert samples == {}
    assert "may not read the RAPL counters" in no_meter(tmp_path)
