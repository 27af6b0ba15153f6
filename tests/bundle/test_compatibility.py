"""Bundles of every released schema keep opening; `tests/reference/bundles` holds one of each."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from cmt.bundle.golden import verify
from cmt.bundle.manifest import VERSION
from cmt.bundle.reader import open_bundle
from cmt.measure import bench
from cmt.report.comparison import choose, merge, read_source
from cmt.report.comparison_pages import write_comparison
from cmt.report.document import VERSION as REPORT_VERSION
from cmt.report.document import render_html, render_markdown, report_of, validate

STORED = sorted((Path(__file__).parents[1] / "reference" / "bundles").glob("schema_*.zip"))


@pytest.fixture(params=STORED, ids=lambda path: path.stem)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A bundle as an earlier version wrote it."""
    with zipfile.ZipFile(request.param) as archive:
        archive.extractall(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_there_is_a_bundle_of_every_schema() -> None:
    assert [path.stem for path in STORED] == [f"schema_{i}" for i in range(1, VERSION + 1)]
    assert REPORT_VERSION <= VERSION, "a new report schema needs a stored bundle too"


@pytest.mark.usefixtures("exact_int8_sums")
def test_a_stored_bundle_opens_and_its_files_answer_as_they_did(stored: Path) -> None:
    bundle = open_bundle(stored)
    checks = list(verify(bundle, 1))
    assert {check.name for check in checks} == {"preprocessing"} | {
        artefact["path"] for artefact in bundle.artefacts
    }
    assert [check for check in checks if check.passed is not True] == []


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
