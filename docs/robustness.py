"""The table of notebook/robustness.md, from the files in data/robustness: `robustness.py`.

`robustness.py --tests JUNIT.xml` first takes up a run of the tests of bad input.

Each file there holds the last complete run of one suite, a JSON object that the suite's own
command wrote:

    {
      "suite": "fuzzing, Python",         what kind of test it is; rows of one suite stand together
      "what": "any bytes as report.json", what was done, in a few words
      "inputs": 1000000,                  how many inputs, moments or runs were tried
      "crashes": 0,                       tracebacks, aborts, memory errors
      "hangs": 0,                         what took longer than the suite allows
      "wrong_successes": 0,               bad input accepted, half a bundle that looks whole
      "date": "2026-11-23",
      "command": "make fuzz FUZZ_SECONDS=1800"
    }

`add_row` writes one; rows are in the order of the files' names.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

HERE = Path(__file__).parent
DATA = HERE / "data" / "robustness"
PAGE = HERE / "notebook" / "robustness.md"
BEGIN, END = "<!-- begin table -->\n", "<!-- end table -->\n"
COUNTS = ("inputs", "crashes", "hangs", "wrong_successes")
_JUNIT = ("tests", "skipped", "errors", "failures")
TESTS = (
    "tests/cmt",
    "tests/calib_data",
    "tests/bundle",
    *(f"tests/report/test_{name}.py" for name in ("document", "comparison")),
    *(f"tests/runtime/test_{name}.py" for name in ("manifests", "images", "tools")),
    "tests/test_cli.py",
)
FIELDS = ("suite", "what", *COUNTS, "date", "command")


def add_row(name: str, row: dict[str, Any]) -> None:
    """Write `data/robustness/NAME.json`; ValueError unless it has all fields and no other."""
    _check(name, row)
    DATA.mkdir(parents=True, exist_ok=True)
    (DATA / f"{name}.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


def _check(name: str, row: dict[str, Any]) -> None:
    if tuple(row) != FIELDS:
        raise ValueError(f"{name}: fields {', '.join(row)}, expected {', '.join(FIELDS)}")
    for field in COUNTS:
        if type(row[field]) is not int or row[field] < 0:
            raise ValueError(f"{name}: {field} is {row[field]!r}, expected a count")


def read_rows() -> list[dict[str, Any]]:
    """Every suite's row, checked."""
    rows = []
    for path in sorted(DATA.glob("*.json")):
        rows.append(json.loads(path.read_text(encoding="utf-8")))
        _check(path.stem, rows[-1])
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table, sums last."""
    lines = [
        "| suite | tried | inputs | crashes | hangs | wrong successes | date | command |",
        "|---|---|--:|--:|--:|--:|---|---|",
    ]
    for row in rows:
        counts = " | ".join(f"{row[field]:,}" for field in COUNTS)
        lines.append(
            f"| {row['suite']} | {row['what']} | {counts} | {row['date']} | `{row['command']}` |"
        )
    sums = " | ".join(f"**{sum(row[field] for row in rows):,}**" for field in COUNTS)
    lines.append(f"| **all** | | {sums} | | |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page with its table made anew."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + table(read_rows()) + END + after


def add_tests(junit: Path) -> None:
    """The row of `TESTS`, from what `pytest --junitxml` wrote of them; each test is an input."""
    suites = list(ElementTree.parse(junit).getroot().iter("testsuite"))
    counts = {key: sum(int(s.get(key, 0)) for s in suites) for key in _JUNIT}
    row = {
        "suite": "tests",
        "what": "damaged, hostile and odd files and command lines",
        "inputs": counts["tests"] - counts["skipped"],
        "crashes": counts["errors"],
        "hangs": 0,
        "wrong_successes": counts["failures"],
        "date": datetime.date.today().isoformat(),
        "command": "python docs/robustness.py --tests tests.xml",
    }
    add_row("tests", row)


if __name__ == "__main__":
    if "--tests" in sys.argv:
        add_tests(Path(sys.argv[-1]))
    PAGE.write_text(page(), encoding="utf-8")
