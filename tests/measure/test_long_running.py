"""`tests/endurance/long_running.py` in short: flat memory, the same answers, in threads too."""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import SimpleNamespace

import long_running
import pytest

STORED = Path(__file__).parents[1] / "reference" / "bundles" / "schema_1.zip"


@pytest.mark.parametrize("target", long_running.TARGETS)
def test_answers_and_memory_stay_as_they_were(target: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(STORED) as archive:
        archive.extractall(tmp_path)
    row = long_running.in_own_process(tmp_path, target, inferences=500, loads=10, threads=8)
    assert long_running.problems(row) == 0, row
    assert row["mb"] > 20


def test_a_leak_is_growth_and_what_is_taken_once_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def growth(resident: list[int]) -> float:
        measured = long_running.Growth(len(resident))
        for done, size in enumerate(resident, 1):
            memory = SimpleNamespace(memory_info=lambda size=size: SimpleNamespace(rss=size))
            monkeypatch.setattr(long_running.psutil, "Process", lambda memory=memory: memory)
            measured.sample(done)
        return measured.percent

    assert growth([1000 + 10 * i for i in range(10)]) == pytest.approx(4.808)
    assert growth([1000] * 4 + [1060] * 6) == 0
    assert growth([1060] + [1000] * 9) == 0


def test_growth_and_other_answers_are_problems() -> None:
    good = {"growth_percent": 0.5, "load_growth_percent": 2.0, "different": 0}
    assert long_running.problems(good) == 0
    assert long_running.problems({**good, "growth_percent": 2.1, "different": 3}) == 4
