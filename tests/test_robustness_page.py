"""The documentation's table of faults is made from the suites' own figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import robustness
from documented import DOCS, missing_tests

ROW = {
    "suite": "fuzzing",
    "what": "bytes",
    "inputs": 1234567,
    "crashes": 0,
    "hangs": 1,
    "wrong_successes": 0,
    "date": "2026-11-23",
    "command": "make fuzz",
}


def test_the_page_shows_the_stored_figures() -> None:
    assert robustness.PAGE.read_text(encoding="utf-8") == robustness.page()
    assert sum(row["inputs"] for row in robustness.read_rows()) >= 1_000_000


def test_the_tests_that_pages_name_exist() -> None:
    assert missing_tests(robustness.TESTS) == []
    page = (DOCS / "guide" / "threats.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "shown by" not in line]
    named = [row.removesuffix(" |").split(" | ")[-1].strip("`") for row in rows]
    assert len(named) > 30
    assert all("::" in name for name in named)
    assert missing_tests(named) == []


@pytest.mark.parametrize(
    "name", ["tests/none.py", "tests/test_cli.py::test_", "tests/x.py::test_y"]
)
def test_a_test_that_is_not_there_is_found(name: str) -> None:
    assert missing_tests([name, "tests/test_cli.py"]) == [name]


def test_rows_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "DATA", tmp_path)
    robustness.add_row("b", ROW)
    robustness.add_row("a", {**ROW, "inputs": 3, "hangs": 2})
    lines = robustness.table(robustness.read_rows()).splitlines()
    assert lines[2] == "| fuzzing | bytes | 3 | 0 | 2 | 0 | 2026-11-23 | `make fuzz` |"
    assert lines[-1] == "| **all** | | **1,234,570** | **0** | **3** | **0** | | |"


@pytest.mark.parametrize("change", [{"inputs": "3"}, {"crashes": -1}, {"hangs": None}, {"more": 1}])
def test_a_row_of_another_kind_is_refused(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robustness, "DATA", tmp_path)
    with pytest.raises(ValueError, match="expected"):
        robustness.add_row("a", {**ROW, **change})
    (tmp_path / "a.json").write_text(json.dumps({**ROW, **change}))
    with pytest.raises(ValueError, match="expected"):
        robustness.read_rows()
