"""The accuracy gate's three answers: passed, not confirmed, failed.

A drop within the limit is what the images happened to show. Where its interval reaches beyond the
limit, the true drop may too: the gate then says so, and how many images would tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cmt.measure.statistics import images_to_confirm
from cmt.report.rows import Gates, Row


def gates(rows: Iterable[Row], max_drop: float, confirm: bool) -> Gates:
    """The report's `gates`; `passed` is null where no accuracy was measured.

    Args:
        rows: of the report's results.
        max_drop: points of top-1.
        confirm: what is not confirmed has failed.
    """
    measured = [row for row in rows if row["accuracy"] is not None]
    failures = [
        f"{_name(row)}: top-1 drop {_drop(row)[0]:.2f} points exceeds --max-drop {max_drop:g}"
        for row in measured
        if _drop(row)[0] > max_drop
    ]
    unconfirmed = [_unconfirmed(row, max_drop) for row in measured if _reaches(row, max_drop)]
    if confirm:
        failures, unconfirmed = failures + unconfirmed, []
    return {
        "max_drop_pp": max_drop,
        "passed": not failures if measured else None,
        "failures": failures,
        "unconfirmed": unconfirmed,
    }


def _name(row: Row) -> str:
    return f"{row['target']}/{row['precision']}"


def _drop(row: Row) -> tuple[float, float]:
    """Points of top-1, and the upper end of their interval, of a row that has an accuracy."""
    accuracy: Mapping[str, Any] = row["accuracy"] or {}
    return accuracy["drop_pp"], accuracy["drop_ci95"][1]


def _reaches(row: Row, max_drop: float) -> bool:
    """Whether a row keeps the limit, and the upper end of its interval does not."""
    drop, upper = _drop(row)
    return drop <= max_drop < upper


def _unconfirmed(row: Row, max_drop: float) -> str:
    accuracy, changes, (drop, upper) = row["accuracy"], row["changes"], _drop(row)
    assert accuracy is not None
    images = images_to_confirm(
        changes["lost"], changes["gained"], accuracy["images"], max_drop / 100
    )
    more = "not even ten million images would be likely to confirm it"
    if images is not None:
        more = f"about {images:,} validation images would be likely to confirm it"
    return (
        f"{_name(row)}: top-1 drop {drop:.2f} points keeps --max-drop {max_drop:g}, "
        f"but its interval reaches {upper:.2f}: {more}"
    )
