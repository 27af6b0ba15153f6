"""Whatever words a report holds, it is refused or shown: no traceback after an hour's measuring."""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cmt.errors import InputError
from cmt.report.comparison import Source, merge
from cmt.report.comparison_pages import terminal_table as comparison_table
from cmt.report.document import validate
from cmt.report.pages import build_page
from cmt.report.terminal import terminal_table
from cmt.report.upgrade import upgrade

STORED = Path(__file__).parents[1] / "reference" / "bundles" / "schema_1.zip"


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    with zipfile.ZipFile(STORED) as archive:
        return upgrade(json.loads(archive.read("report.json")))


def words(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to a text of every name."""
    if isinstance(value, str):
        yield path
    items = enumerate(value) if isinstance(value, list) else ()
    for key, item in value.items() if isinstance(value, dict) else items:
        yield from words(item, (*path, key))


def put(report: Any, place: tuple[Any, ...], value: Any) -> Any:
    changed = inner = copy.deepcopy(report)
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


def is_good(report: Any) -> bool:
    try:
        validate(report)
    except InputError:
        return False
    return True


def test_every_text_may_be_another_one(report: dict[str, Any]) -> None:
    told = [p for p in words(report) if p[0] not in ("environment", "images", "weights")]
    places = {tuple(key for key in p if isinstance(key, str)): p for p in told}
    assert len(places) > 10
    shown = 0
    for place in places.values():
        changed = put(report, place, "bf16")
        if is_good(changed):
            shown += 1
            build_page(changed)
            terminal_table(changed)
            comparison_table(merge([Source(Path("a"), "a", changed)]))
    assert shown > 5


@pytest.mark.parametrize("precision", ["bf16", "int4", "FP32", "", "int8\n"])
def test_a_precision_is_one_that_is_known(report: dict[str, Any], precision: str) -> None:
    for place in (("baseline", "precision"), ("results", 0, "precision")):
        assert not is_good(put(report, place, precision))


@pytest.mark.parametrize("name", ["a\x1b[2Kb", "a\nok signature", "a\u202eb", "a\u2028b", "a\x9bb"])
def test_names_are_one_visible_line(report: dict[str, Any], name: str) -> None:
    for place in (("variant",), ("family",), ("results", 0, "target"), ("results", 0, "artefact")):
        assert not is_good(put(report, place, name))
    settings = {**report["results"][0]["settings"], "x": name}
    assert not is_good(put(report, ("results", 0, "settings"), settings))


@pytest.mark.parametrize(
    "settings",
    [{"batch": 0}, {"batch": 10**9}, {"threads": -1}, {"threads": "2"}, {"NUM_STREAMS": 10**9}],
)
def test_settings_of_a_row_are_in_their_ranges(
    report: dict[str, Any], settings: dict[str, Any]
) -> None:
    row = {**report["results"][0]["settings"], **settings}
    assert not is_good(put(report, ("results", 0, "settings"), row))
