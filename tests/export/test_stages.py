"""Finished stages survive; unfinished or outdated ones are made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmt.export.stages import Stages


def counting(calls: list[str], name: str, text: str = "content"):  # type: ignore[no-untyped-def]
    def make(folder: Path) -> None:
        calls.append(name)
        (folder / "file").write_text(text)

    return make


def test_a_finished_stage_is_not_repeated(tmp_path: Path) -> None:
    calls: list[str] = []
    for _ in range(2):
        folder = Stages(tmp_path, {"seed": 0}).run("a/b", {"x": 1}, counting(calls, "a/b"))
        assert (folder / "file").read_text() == "content"
    assert calls == ["a/b"]


@pytest.mark.parametrize("change", ["inputs", "common"])
def test_a_changed_input_makes_a_stage_and_those_after_it_again(
    tmp_path: Path, change: str
) -> None:
    calls: list[str] = []
    for value in (1, 2):
        stages = Stages(tmp_path, {"seed": value if change == "common" else 0})
        stages.run("a", {"x": value if change == "inputs" else 0}, counting(calls, "a"))
        stages.run("b", {}, counting(calls, "b"), ["a"])
    assert calls == ["a", "b", "a", "b"]


def test_a_stage_whose_files_were_damaged_is_made_again(tmp_path: Path) -> None:
    calls: list[str] = []
    folder = Stages(tmp_path, {}).run("a", {}, counting(calls, "a"))
    (folder / "file").write_text("cont")
    Stages(tmp_path, {}).run("a", {}, counting(calls, "a"))
    assert (folder / "file").read_text() == "content"
    assert calls == ["a", "a"]


def test_what_reads_a_stage_that_came_out_otherwise_is_made_again(tmp_path: Path) -> None:
    calls: list[str] = []
    for text, parameter in (("once", 1), ("detour", 2), ("again", 1)):
        stages = Stages(tmp_path, {})
        stages.run("a", {"x": parameter}, counting(calls, "a", text))
        if parameter == 1:
            stages.run("b", {}, counting(calls, "b"), ["a"])
    assert calls == ["a", "b", "a", "a", "b"]


def test_an_interrupted_stage_leaves_nothing_that_counts_as_finished(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path, {}).run("a", {}, interrupted)
    calls: list[str] = []
    folder = Stages(tmp_path, {}).run("a", {}, counting(calls, "a"))
    assert calls == ["a"]
    assert not (folder / "half").exists()
