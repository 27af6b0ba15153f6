"""The search for a file's settings: what is tried, and when a choice is worth a change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmt.bundle.reader import open_bundle
from cmt.export import export
from cmt.measure import tune
from cmt.measure.latency import Timing
from cmt.targets.openvino import OPENVINO_SETTINGS, TARGET, tune_space
from cmt.targets.settings import PRECISION, THREADS

BF16 = {**OPENVINO_SETTINGS, PRECISION: "bf16"}


def choices(settings: dict[str, Any], threads: int) -> list[tuple[int, str]]:
    return [(c[THREADS], c[PRECISION]) for c in tune_space(settings, threads)]


def test_fewer_threads_and_float32_are_tried() -> None:
    assert choices(BF16, 6) == [(t, p) for t in (6, 3, 1) for p in ("bf16", "f32")]


def test_float32_files_stay_float32() -> None:
    assert choices(OPENVINO_SETTINGS, 2) == [(2, "f32"), (1, "f32")]


@pytest.mark.parametrize(
    ("second", "found"),
    [
        ([[9.0, 9.1], [18.0, 18.1], [9.0, 9.2]], 1),  # faster in every round of a drifting machine
        ([[9.9, 10.0], [19.9, 20.0], [9.9, 10.0]], None),  # by less than two compilations differ
        ([[11.0, 11.0], [9.0, 9.0], [11.0, 11.0]], None),  # faster once
    ],
)
def test_settings_change_only_for_what_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, second: list[list[float]], found: int | None
) -> None:
    untuned = Timing(1.0, 1.0, [[10.0, 10.0], [20.0, 20.0], [10.0, 10.0]])
    timings = {"0": untuned, "1": Timing(1.0, 1.0, second)}
    monkeypatch.setattr(tune, "measure_alternately", lambda *_: timings)
    settings, rows = tune.tune(TARGET, Path(), None, OPENVINO_SETTINGS, 2, 1.0, print)  # type: ignore[arg-type]
    assert settings.get(THREADS) == found
    assert [row["settings"][THREADS] for row in rows] == [2, 1]
    assert [row["p50_ms"] for row in rows] == [timings[i].latency["p50"] for i in "01"]


def test_a_tuned_export_runs_as_tuned_and_says_what_was_tried(
    tiny_in_process: None,
    resumable: Callable[[Path], Path],
    photos: Path,
    tiny_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The search is real; the choice is made for it, as a machine may find nothing to gain.
    measured = tune.tune

    def choose_one_thread(*arguments: Any) -> Any:
        _, rows = measured(*arguments)
        return rows[-1]["settings"], rows

    monkeypatch.setattr("cmt.export.file_maker.tune", choose_one_thread)
    result = export(
        variant="tiny",
        targets=("openvino",),
        weights=str(tiny_weights),
        val_data=photos,
        batch=3,
        out=resumable(tmp_path / "bundle"),
        resume=True,
        tune=True,
        threads=2,
        bench_seconds=0.1,
        max_drop=100.0,
    )
    (artefact,) = open_bundle(result.path).artefacts
    assert artefact["settings"][THREADS] == 1
    assert [row["settings"][THREADS] for row in artefact["tuning"]] == [2, 1]
    assert all(row["p50_ms"] > 0 for row in artefact["tuning"])
    report = json.loads((result.path / "report.json").read_text())
    assert [row["settings"]["threads"] for row in report["results"]] == [1]
