"""Reports of earlier versions of the format, brought to the present one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from cmt.report.rows import Report

VERSION = 2
_NO_INTERVAL = "the version that measured it gave speed-ups no interval"


def upgrade(report: dict[str, Any]) -> Report:
    """A report of any known schema as one of schema `VERSION`, still to be validated."""
    if type(report.get("schema")) is int and report["schema"] == 1:
        for row in _rows(report):
            _drop_speedups(row)
        report["schema"] = 2
    for fallback in _objects(report.get("fallbacks")):
        for point in _objects(fallback.get("points")):
            if "slowdown_ci95" not in point:
                point |= {"slowdown": None, "slowdown_ci95": None}
    return cast(Report, report)


def _drop_speedups(row: dict[str, Any]) -> None:
    """Schema 1 had ratios of medians, as plain numbers."""
    for field in ("speedup_vs_baseline", "speedup_vs_fp32_graph"):
        if isinstance(row.get(field), int | float) and isinstance(row.get("reasons"), dict):
            row[field] = None
            row["reasons"][field] = _NO_INTERVAL


def _rows(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All that look like rows, wherever the schema has some."""
    for holder in (report, *_objects(report.get("machines"))):
        yield from _objects(holder.get("results"))
    yield from _objects([report.get("baseline")])


def _objects(value: object) -> list[dict[str, Any]]:
    """Those of a list; nothing of what is none."""
    items = value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, dict)]
