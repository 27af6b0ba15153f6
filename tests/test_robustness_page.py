"""The documentation's table of faults is made from the suites' own figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import robustness

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


def test_the_tests_that_a_row_counts_exist() -> None:
    root = Path(__file__).parents[1]
    assert [name for name in robustness.TESTS if not (root / name).exists()] == []


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
