"""The report's figures as charts, each with what it shows in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cmt.printing import printable
from cmt.report import charts
from cmt.report.figures import decimal, interval, megabytes, milliseconds, percent, points
from cmt.report.rows import Accuracy, Report, Row
from cmt.report.tables import all_rows, marked_name
from cmt.targets.base import PRECISIONS


@dataclass(frozen=True)
class Key:
    """What a letter of a chart stands for, with the figures that the chart shows of it."""

    letter: str
    series: int
    name: str
    text: str


@dataclass(frozen=True)
class Chart:
    """A drawing (SVG) and the same in words; `title` heads it, `caption` explains it.

    Attributes:
        svg: empty where it could not be drawn, for `undrawn`.
    """

    title: str
    caption: str
    svg: str
    key: tuple[Key, ...]
    undrawn: str | None = None


@dataclass(frozen=True)
class Entry:
    """A row of the report in a chart.

    Attributes:
        name: how the page calls it.
        series: number of its colour and shape; 0 is the baseline's.
    """

    name: str
    row: Row
    series: int


_STAGE = ", stage "


def sensitivity_charts(report: Report) -> Iterable[Chart]:
    """A chart for each recipe: its roles, worst first, and their stages."""
    units = report["sensitivity"] or ()
    entries = [(row, error) for row in units if (error := row["sqnr_db"]) is not None]
    for recipe in dict.fromkeys(row["recipe"] for row, _ in entries):
        roles: dict[str, charts.Role] = {}
        for row, error in entries:
            if row["recipe"] == recipe:
                name, _, stage = row["unit"].partition(_STAGE)
                number = int(stage) if stage.isdecimal() else 0
                role = roles.setdefault(name, charts.Role(_letter(len(roles)), [], []))
                role.points.append((number, error))
                layers = [layer["sqnr_db"] for layer in row.get("by_layer", ())]
                role.layers.extend(
                    (number, decibels) for decibels in layers if decibels is not None
                )
        marks = list(roles.values())
        key = tuple(
            Key(mark.letter, 0, name, _stages_text(mark.points))
            for name, mark in zip(roles, marks, strict=True)
        )
        title = f"Sensitivity, {recipe} recipe"
        said = f"{title}. " + "; ".join(f"{k.letter}, {k.name}: {k.text}" for k in key)
        place = f"sensitivity-{_letter_name(recipe)}"
        yield _drawn(
            title,
            "The logits' power over that of their error, in decibels, with one role of one stage "
            "alone narrowed; left is worse. Digits: the stage. Dots: single layers in the colour "
            "of their stage; report.json has their figures.",
            partial(charts.sensitivity, marks, place, printable(said)),
            key,
        )


def _drawn(title: str, caption: str, draw: Callable[[], str], key: tuple[Key, ...]) -> Chart:
    """A chart, in words alone where there is nothing to draw with."""
    undrawn = charts.missing()
    return Chart(title, caption, "" if undrawn else draw(), key, undrawn)


def _letter_name(text: str) -> str:
    """What may be part of an id."""
    return "".join(char for char in text if char.isascii() and char.isalnum())


def _stages_text(marks: Sequence[tuple[int, float]]) -> str:
    return ", ".join(
        (f"stage {stage} " if stage else "") + f"{decimal(decibels)} dB"
        for stage, decibels in sorted(marks)
    )


def _letter(number: int) -> str:
    """A to Z, then AA, AB and so on."""
    head, last = divmod(number, 26)
    return (_letter(head - 1) if head else "") + chr(ord("A") + last)


def _top1_interval(accuracy: Accuracy) -> tuple[float, float] | None:
    """The interval of the drop, laid around the baseline's top-1."""
    if accuracy["drop_pp"] is None or accuracy["drop_ci95"] is None:
        return None
    baseline = accuracy["top1"] + accuracy["drop_pp"]
    low, high = accuracy["drop_ci95"]
    return baseline - high, baseline - low


def _mark(letter: str, entry: Entry) -> charts.Mark:
    row = entry.row
    accuracy: Mapping[str, Any] = row["accuracy"] or {}
    latency: Mapping[str, Any] = row["latency_ms"] or {}
    interval = accuracy.get("drop_ci95")
    precision = row["precision"]
    return charts.Mark(
        letter=letter,
        series=entry.series,
        dash=PRECISIONS.index(precision) if precision in PRECISIONS else 0,
        p50=latency.get("p50"),
        quantiles=latency.get("quantiles"),
        top1=accuracy.get("top1"),
        top1_interval=_top1_interval(row["accuracy"]) if row["accuracy"] and entry.series else None,
        drop=accuracy.get("drop_pp"),
        drop_interval=(interval[0], interval[1]) if interval else None,
        bytes=row["bytes"],
    )


def _pareto_text(mark: charts.Mark) -> str:
    parts = [f"{milliseconds(mark.p50)} ms", f"top-1 {percent(mark.top1)} %"]
    if mark.top1_interval:
        low, high = mark.top1_interval
        parts[1] += f" [{percent(low)}, {percent(high)}]"
    return ", ".join([*parts, *([megabytes(mark.bytes)] if mark.bytes else [])])


def _distribution_text(mark: charts.Mark) -> str:
    assert mark.quantiles is not None
    fast, median, slow = (mark.quantiles[charts.QUANTILES.index(q)] for q in (5, 50, 95))
    return f"{milliseconds(fast)}, {milliseconds(median)}, {milliseconds(slow)} ms"


def _chart(
    title: str,
    caption: str,
    chosen: list[tuple[Entry, charts.Mark]],
    draw: Callable[[list[charts.Mark], str], str],
    words: Callable[[charts.Mark], str],
) -> Chart:
    key = tuple(
        Key(mark.letter, mark.series % charts.SERIES, entry.name, words(mark))
        for entry, mark in chosen
    )
    said = f"{title}. " + "; ".join(f"{k.letter}, {k.name}: {k.text}" for k in key)
    marks = [mark for _, mark in chosen]
    return _drawn(title, caption, partial(draw, marks, printable(said)), key)


def draw_charts(entries: Sequence[Entry], limit: float | None) -> tuple[Chart, ...]:
    """Those charts for which there are figures.

    Args:
        entries: all rows; each keeps its letter in every chart.
        limit: the largest accepted drop, points.
    """
    named = [(entry, _mark(_letter(i), entry)) for i, entry in enumerate(entries)]
    found = []
    both = [pair for pair in named if pair[1].p50 is not None and pair[1].top1 is not None]
    if both:
        accuracies = [one for entry, _ in both if (one := entry.row["accuracy"])]
        # Rounded: sums of decimal fractions differ in their last bits.
        baselines = {round(a["top1"] + (a["drop_pp"] or 0), 6) for a in accuracies}
        floor = baselines.pop() - limit if limit is not None and len(baselines) == 1 else None
        found.append(
            _chart(
                "Top-1 against latency",
                "Up and left is better; the line joins what nothing beats in both. Bars: 95 % "
                "interval of the difference from the baseline. Area: file size. Dashed: the "
                "lowest top-1 accepted, where it is one for all and in reach.",
                both,
                lambda marks, said: charts.pareto(marks, floor, said),
                _pareto_text,
            )
        )
    dropped = [pair for pair in named if pair[1].drop_interval and pair[0].series]
    if dropped:
        found.append(
            _chart(
                "Top-1 drop",
                "Points lost against the baseline, with the 95 % interval. Dashed: the limit, "
                "where it is in reach.",
                dropped,
                lambda marks, said: charts.drops(marks, limit, said),
                lambda mark: points(mark.drop) + interval(mark.drop_interval),
            )
        )
    spread = [pair for pair in named if pair[1].quantiles]
    if spread:
        found.append(
            _chart(
                "Latency distributions",
                "Share of the timed runs that took no longer; the steeper, the steadier. In "
                "figures: 5 %, half and 95 % of the runs took no longer than this.",
                spread,
                charts.distributions,
                _distribution_text,
            )
        )
    return tuple(found)


def _series(rows: Sequence[Row]) -> list[int]:
    """A number for each target, in order; 0 for the baseline, which comes first."""
    targets = list(dict.fromkeys(row["target"] for row in rows[1:]))
    return [0, *(1 + targets.index(row["target"]) for row in rows[1:])]


def report_charts(report: Report) -> tuple[Chart, ...]:
    rows = all_rows(report)
    entries = [Entry(marked_name(row), row, i) for row, i in zip(rows, _series(rows), strict=True)]
    return draw_charts(entries, report["gates"]["max_drop_pp"])
