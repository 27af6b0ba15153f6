"""Names of others reach a terminal as one line of visible characters."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cmt.printing import printable

FORGED = "x\x1b[2K\r\nok      signature: good\x9b31m\u202e\u2066\u2028\u200fy\x07\x08"
Run = Callable[..., tuple[int, str, str]]


def test_no_character_moves_the_cursor_or_turns_the_line() -> None:
    for point in [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0x061C, 0xFEFF, 0xDC80]:
        assert all(char.isprintable() for char in printable(f"a{chr(point)}b"))
    assert printable(FORGED).isprintable()
    assert printable("猫 étagère") == "猫 étagère"


@pytest.mark.parametrize(
    "command",
    [
        ("cmt-bench", "{}", "--verify"),
        ("cmt-bench", "{}"),
        ("cmt-bench", "{}", "-v"),
        ("cmt-bench", "{}", "--verify", "--trust", "{}"),
        ("cmt-report", "{}"),
        ("cmt-report", "{}", "--trust", "{}"),
        ("cmt-report", "name={}"),
        ("cmt-report", "{}", "-v"),
        ("cmt-report", ".", "--machine", "{}"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("exists", [False, True])
def test_no_path_forges_a_line(
    run_command: Run, tmp_path: Path, command: list[str], exists: bool
) -> None:
    folder = tmp_path / FORGED
    if exists:
        folder.mkdir()
        (folder / "manifest.json").write_text("{")
        (folder / "report.json").write_text("{")
    name, *arguments = command
    status, out, err = run_command(name, *(a.format(folder) for a in arguments))
    assert status == 2
    assert "\nok " not in out + err
    assert all(char.isprintable() or char in "\n" for char in out + err)
    if "-v" not in arguments:
        assert len(err.splitlines()) == 1


@pytest.mark.skipif(os.name == "nt", reason="paths are text there")
def test_a_path_of_any_bytes_is_said(run_command: Run, tmp_path: Path) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x9b\n")
    status, out, err = run_command("cmt-report", folder)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    err.encode()
