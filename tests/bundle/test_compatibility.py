"""Bundles of every released schema keep opening; `tests/reference/bundles` holds one of each."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cmt.bundle.golden import verify
from cmt.bundle.manifest import VERSION
from cmt.bundle.reader import open_bundle
from cmt.errors import InputError
from cmt.measure import bench
from cmt.report.comparison import choose, merge, read_source
from cmt.report.comparison_pages import write_comparison
from cmt.report.document import (
    parse_report,
    read_report,
    render_html,
    render_markdown,
    report_of,
    validate,
)
from cmt.report.upgrade import VERSION as REPORT_VERSION

REFERENCE = Path(__file__).parents[1] / "reference"
STORED = sorted((REFERENCE / "bundles").glob("schema_*.zip"))


@pytest.fixture(params=STORED, ids=lambda path: path.stem)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A bundle as an earlier version wrote it."""
    with zipfile.ZipFile(request.param) as archive:
        archive.extractall(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_there_is_a_bundle_of_every_schema() -> None:
    assert [path.stem for path in STORED] == [f"schema_{i}" for i in range(1, VERSION + 1)]


def test_a_report_of_every_schema_is_read_as_the_present_one() -> None:
    """That of schema 1 is in the stored bundle."""
    found = sorted((REFERENCE / "reports").glob("schema_*.json"))
    assert [path.stem for path in found] == [f"schema_{i}" for i in range(2, REPORT_VERSION + 1)]
    for path in found:
        assert read_report(path)["schema"] == REPORT_VERSION


def test_ratios_without_an_interval_are_not_named_any_more(stored: Path) -> None:
    before = json.loads((stored / "report.json").read_text())
    now = report_of(open_bundle(stored))
    assert next(row["speedup_vs_baseline"] for row in before["results"]) > 0
    for row, was in zip(now["results"], before["results"], strict=True):
        assert row["speedup_vs_baseline"] is row["speedup_vs_fp32_graph"] is None
        assert row["latency_ms"] == was["latency_ms"]
        assert "no interval" in row["reasons"]["speedup_vs_baseline"]


@pytest.mark.parametrize("junk", [None, True, 7, "x", [], [7], [[]], {}, {"results": 7}])
@pytest.mark.parametrize("place", ["schema", "baseline", "results", "machines", "whole"])
def test_an_earlier_report_that_is_none_is_bad_input(stored: Path, place: str, junk: Any) -> None:
    report = json.loads((stored / "report.json").read_text())
    broken = {"schema": 1, "x": junk} if place == "whole" else {**report, place: junk}
    if (place, junk) == ("machines", []):
        assert parse_report(json.dumps(broken).encode())["machines"] == []
        return
    with pytest.raises(InputError):
        parse_report(json.dumps(broken).encode())


@pytest.mark.usefixtures("exact_int8_sums")
def test_a_stored_bundle_opens_and_its_files_answer_as_they_did(stored: Path) -> None:
    bundle = open_bundle(stored)
    checks = list(verify(bundle, 1))
    assert {check.name for check in checks} == {"preprocessing"} | {
        artefact["path"] for artefact in bundle.artefacts
    }
    assert [check for check in checks if check.passed is False] == []
    assert sum(check.passed is True for check in checks) > 1  # one is in BF16, which CPUs lack


def test_a_stored_report_is_shown_compared_and_added_to(stored: Path, tmp_path: Path) -> None:
    bundle = open_bundle(stored)
    validate(report_of(bundle))
    assert "CMT" in render_html(report_of(bundle))
    assert render_markdown(report_of(bundle))
    source = read_source(f"then={stored}")
    write_comparison(choose(merge([source], False), (), ()), tmp_path / "comparison")
    assert (tmp_path / "comparison" / "comparison.html").is_file()
    entry = {
        "machine": "here",
        "measured": report_of(bundle)["created"],
        "command": "cmt-bench",
        "environment": report_of(bundle)["environment"],
        "results": report_of(bundle)["results"][:1],
    }
    bench.save(bundle, entry)
    assert report_of(open_bundle(stored))["machines"] == [entry]
