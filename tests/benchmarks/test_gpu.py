"""The GPU benchmark: rehearsed to its last line without a GPU, packed for a machine with one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import gpu, gpu_folder
from benchmarks.gpu import FIGURES, NOT_MEASURED, REHEARSED
from benchmarks.gpu_rehearsal import SHAPES
from cmt.bundle.reader import open_bundle
from cmt.export.pipeline import Bundle
from cmt.targets.registry import TARGETS
from cmt.targets.tensorrt import device
from cmt.targets.tensorrt.record import GPUS, Launch, Record, Tensor

needs_engines = pytest.mark.skipif(
    TARGETS["tensorrt"].missing() is not None, reason="needs tensorrt-rtx"
)


@pytest.fixture
def simulated_afterwards_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rehearsal puts into this process is taken out again."""
    for name in ("tensorrt", "cuda", "cuda.bindings", "cuda.bindings.runtime"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(device, "find_gpu", device.find_gpu)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(SHAPES, "{}")


@needs_engines
@pytest.mark.usefixtures("simulated_afterwards_gone")
def test_a_rehearsal_runs_to_its_last_line_and_says_that_nothing_was_measured(
    bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    work, out = tmp_path / "work", tmp_path / "gpu.json"
    command = f"{bundle.path} --work {work} --out {out} --photos {photos} --seconds 0 --rehearse"
    result = CliRunner().invoke(gpu.main, command.split(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    said = json.loads(out.read_text())
    names = {(row["name"], row["cuda_graph"]) for row in said["rows"]}
    assert {("INT8", "on"), ("INT8", "off"), ("torch.compile FP16", "on")} <= names
    assert all(row[figure] is None for row in said["rows"] for figure in FIGURES)
    reasons = {row["name"]: row["reason"] for row in said["rows"]}
    assert reasons["INT8"] == REHEARSED  # so the engine was built, checked, timed and judged
    table = [
        line for line in out.with_suffix(".md").read_text().splitlines() if line[:5] == "| CMT"
    ]
    assert len(table) == len(said["rows"])
    assert all(line.count(NOT_MEASURED) == len(FIGURES) for line in table)


@needs_engines
def test_predictions_travel_by_graph_batch_and_gpu(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = Tensor("x", (1, 1_000_000), "Half")
    record = Record((Launch("move", "kgen", (wide,), (), (wide,), ()),), 0)
    monkeypatch.setattr(gpu_folder, "read_record", lambda *_: record)
    made = json.loads(json.dumps(gpu_folder.predicted([bundle.path])))
    (point,) = gpu.points_of(open_bundle(bundle.path))
    found = gpu.predictions(point, made, "sm80")["INT8"]
    assert (found["launches"], found["moved"], found["gpu"]) == (1, 4_000_000, GPUS["sm80"].name)


def test_the_table_has_figures_with_their_intervals_and_reasons() -> None:
    where = {"network": "CMT-Ti 160x160", "batch": 8, "cuda_graph": "on", "clocks": ["1980 MHz"]}
    measured: dict[str, Any] = {
        **where,
        "name": "FP16",
        "ms": 0.5,
        "gpu_ms": 0.4,
        "images_per_second": 16000.0,
        "beside_eager": {"ratio": 3.0, "ci95": [2.9, 3.1], "rounds": 9},
        "predicted": {"ms": 0.3},
        "top1": 82.5,
        "drop": {"drop_pp": 0.1, "drop_ci95": [-0.1, 0.3]},
        "reason": None,
    }
    other = {**where, "name": "INT8", **dict.fromkeys(FIGURES), "reason": "no engine"}
    about = {"gpu": "L4", "cpu": "EPYC", "packages": {"torch": "2.13.0", "numpy": "2.0"}}
    results = {
        "rehearsal": False,
        "rows": [measured, other],
        "measured": "2026-11-30T12:00:00",
        "environment": about,
    }
    lines = list(gpu.markdown(results))
    figures = "0.500 | 0.400 | 16000 | 3.00 [2.90, 3.10] | 0.300 | 82.50 | 0.10 [-0.10, 0.30] |"
    assert lines[2] == f"| CMT-Ti 160x160 | 8 | FP16 | on | {figures}"
    assert lines[3].count(NOT_MEASURED) == len(FIGURES)
    assert "- CMT-Ti 160x160, batch 8, INT8: no engine" in lines
    assert lines[-1] == "L4, EPYC, torch 2.13.0, 2026-11-30."


def test_the_prediction_is_corrected_by_what_was_measured() -> None:
    rows = [
        {
            "gpu_ms": 0.003 * launches + 1.5 * moving,
            "predicted": {**said, "ms": 0.002 * launches + moving},
        }
        for launches, moving in ((100, 0.1), (200, 0.3), (300, 0.2))
        for said in [{"launches": launches}]
    ]
    unknown: dict[str, Any] = {"gpu_ms": 1.0, "predicted": None}
    assert gpu.correction([*rows, unknown]) == pytest.approx((3.0, 1.5))
    assert gpu.correction([*rows[:2], unknown]) is None


def test_a_folder_travels_in_parts_and_damage_is_found(tmp_path: Path) -> None:
    folder, out, again = (tmp_path / name for name in ("folder", "out", "again"))
    content = np.random.default_rng(0).bytes(5000)
    (folder / "site").mkdir(parents=True)
    (folder / "site" / "library.so").write_bytes(content)
    parts = gpu_folder.pack(folder, out, most=2000)
    assert [path.stat().st_size for path in parts[:-1]] == [2000] * (len(parts) - 1)
    assert 0 < parts[-1].stat().st_size <= 2000
    command = [sys.executable, str(out / "unpack.py"), str(again)]
    subprocess.run(command, check=True)
    assert (again / "site" / "library.so").read_bytes() == content

    parts[1].write_bytes(bytes(2000))
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.strip() == "part-01.xz is damaged: copy it again"
