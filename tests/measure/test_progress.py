"""How far a run is: said in lines where there is no terminal, and told from what the last took."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cmt.files import cache_folder
from cmt.measure import progress
from cmt.measure.progress import History, ProgressBars, duration

STEPS = {"reading": 10.0, "building": 50.0, "timing": 100.0}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def keep(kind: str, took: dict[str, float], goes_on: bool = False) -> None:
    history = History(kind, goes_on)
    history.took = dict(took)
    history.keep()


def test_the_last_run_of_a_kind_tells_how_many_steps_there_are_and_how_long() -> None:
    assert (History("a").place("building"), History("a").left("building", 0)) == ("1", None)
    keep("a", STEPS)
    keep("b", {"other": 1.0})
    history = History("a")
    assert history.place("building") == "2 of 3"
    assert history.left("building", 20) == 30 + 100
    assert history.left("building", 70) == 100
    assert history.left("new", 0) is None
    assert History("b").earlier == {"other": 1.0}


def test_a_run_that_went_on_keeps_the_times_of_what_it_found_done() -> None:
    keep("a", STEPS)
    keep("a", {"timing": 70.0}, goes_on=True)
    assert History("a").earlier == {**STEPS, "timing": 70.0}
    keep("a", {"reading": 5.0, "timing": 70.0})
    assert History("a").earlier == {"reading": 5.0, "timing": 70.0}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 7}', b'{"a": {"x": "y"}}', b"\xff"])
def test_a_history_that_cannot_be_read_is_none(content: bytes) -> None:
    cache_folder().mkdir(parents=True)
    (cache_folder() / "steps.json").write_bytes(content)
    assert History("a").earlier == {}


def test_a_long_step_says_so_off_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    keep("a", {"reading": 1000.0})
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    logged: list[str] = []
    with ProgressBars(True, "a", log=logged.append) as bars, bars.task("reading", 3) as advance:
        advance(2)
        begun = logged.index("step 1 of 1, reading")
        while len(logged) < begun + 4:
            time.sleep(0.01)
    said = "step 1 of 1, reading: 2 of 3 (0 s, about 16 min 40 s left as last time)"
    assert said in logged
    assert said in capfd.readouterr().err


def test_what_is_not_to_be_shown_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.001)
    with ProgressBars(False) as bars, bars.step("reading"):
        time.sleep(0.05)
    assert capfd.readouterr() == ("", "")


def test_a_run_that_failed_leaves_no_times() -> None:
    def fail() -> None:
        with ProgressBars(True, "a") as bars:
            with bars.step("reading"):
                pass
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert History("a").earlier == {}


def test_durations_are_for_people() -> None:
    assert [duration(s) for s in (0.4, 59.4, 60, 200)] == ["0 s", "59 s", "1 min 0 s", "3 min 20 s"]
