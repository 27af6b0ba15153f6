"""The search for a file's settings: what is tried, and when a choice is worth a change."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmt.bundle.reader import open_bundle
from cmt.export import export
from cmt.measure.timing import Timing
from cmt.measure.tune import Search, fastest
from cmt.targets.machine import Hardware
from cmt.targets.openvino import OPENVINO_SETTINGS, TARGET, tune_space
from cmt.targets.settings import PRECISION, THREADS

DRIFTING = [10.0, 20.0, 10.0, 12.0, 19.0, 11.0, 10.0]
BF16 = {**OPENVINO_SETTINGS, PRECISION: "bf16"}


def choices(settings: dict[str, Any], threads: int) -> list[tuple[int, str]]:
    return [(c[THREADS], c[PRECISION]) for c in tune_space(settings, threads)]


def test_fewer_threads_and_float32_are_tried() -> None:
    assert choices(BF16, 6) == [(t, p) for t in (6, 3, 1) for p in ("bf16", "f32")]


def test_float32_files_stay_float32() -> None:
    assert choices(OPENVINO_SETTINGS, 2) == [(2, "f32"), (1, "f32")]


def timing(medians: list[float]) -> Timing:
    return Timing(1.0, 1.0, [[ms, ms] for ms in medians])


@pytest.mark.parametrize(
    ("second", "found"),
    [
        ([0.9 * ms for ms in DRIFTING], 1),  # faster in every round of a drifting machine
        ([0.99 * ms for ms in DRIFTING], 0),  # by less than two starts of one process differ
        ([11.0, 22.0, 9.0, 11.0, 22.0, 9.0, 11.0], 0),  # faster at times
    ],
)
def test_settings_change_only_for_what_is_certainly_faster(second: list[float], found: int) -> None:
    assert fastest([timing(DRIFTING), timing(second)]) == found


def a_search(folder: Path, threads: int = 2) -> Search:
    file = folder / "cmt.int8.xml"
    file.write_text("a file")
    machine = {**dict.fromkeys(Hardware.__required_keys__), "packages": {"openvino": "1"}}
    return Search(TARGET, file, np.zeros((1, 3, 8, 8), np.float32), BF16, threads, machine)


@contextmanager
def no_progress(_title: str, _total: int) -> Iterator[Callable[[int], None]]:
    yield lambda _: None


def test_the_short_search_tries_what_differs_in_one_setting_and_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = []

    def measure(*arguments: Any, **_: Any) -> dict[str, Timing]:
        asked.append([(c[THREADS], c[PRECISION]) for c in arguments[-1].values()])
        return {str(i): timing([(9.0 - i) * ms for ms in DRIFTING]) for i in range(3)}

    monkeypatch.setattr("cmt.measure.tune.measure_alternately", measure)
    search = a_search(tmp_path, threads=8)
    found = search.short(no_progress)
    assert asked == [[(8, "bf16"), (8, "f32"), (4, "bf16")]]
    assert (found[0][THREADS], found[0][PRECISION]) == (4, "bf16")
    assert a_search(tmp_path, threads=8).short(no_progress) == found
    assert len(asked) == 1

    (tmp_path / "cmt.int8.bin").write_text("other weights")
    search.short(no_progress)
    assert len(asked) == 2, "another file"


@pytest.mark.parametrize(("f32", "kept"), [(0.96, "f32"), (0.99, "bf16"), (1.05, "bf16")])
def test_bf16_gives_way_to_float32_where_that_is_faster_for_certain(
    f32: float, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of an INT8 file on a CPU with AVX512-BF16 and no AMX."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    times = {"bf16": 1.0, "f32": f32}

    def measure(*arguments: Any, **_: Any) -> dict[str, Timing]:
        asked = arguments[-1]
        return {
            name: timing([(times[c[PRECISION]] + c[THREADS] % 2) * ms for ms in DRIFTING])
            for name, c in asked.items()
        }

    monkeypatch.setattr("cmt.measure.tune.measure_alternately", measure)
    settings, rows = a_search(tmp_path).short(no_progress)
    assert settings[PRECISION] == kept
    assert [row["settings"][PRECISION] for row in rows] == ["bf16", "f32", "bf16"]


@pytest.mark.parametrize("content", ["", "[7, [1, 2]]", "[-1, [1, 2]]", "[0, 1]", "{}", "[0, [1]]"])
def test_a_damaged_memory_is_searched_again(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    timings = {str(i): timing(DRIFTING) for i in range(3)}
    monkeypatch.setattr("cmt.measure.tune.measure_alternately", lambda *_, **__: timings)
    search = a_search(tmp_path)
    found = search.short(no_progress)
    (memory,) = (tmp_path / "cache").rglob("*.json")
    memory.write_text(content)
    assert search.short(no_progress) == found


def test_what_a_busy_machine_finds_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    busy = timing(DRIFTING)
    busy.disturbed = [True] * len(DRIFTING)
    timings = {str(i): busy for i in range(3)}
    monkeypatch.setattr("cmt.measure.tune.measure_alternately", lambda *_, **__: timings)
    settings, rows = a_search(tmp_path).short(no_progress)
    assert (settings, len(rows)) == (BF16, 3)
    assert not list(tmp_path.rglob("*.json"))


def test_a_tuned_export_runs_as_tuned_and_says_what_was_tried(
    tiny_in_process: None,
    resumable: Callable[[Path], Path],
    photos: Path,
    tiny_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The search is real; the choice is made for it, as a machine may find nothing to gain.
    monkeypatch.setattr("cmt.measure.tune.fastest", lambda timings: len(timings) - 1)
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
