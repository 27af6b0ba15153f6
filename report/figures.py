"""Figures as the reports print them, and what each row of a report has of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

from cmt.report.rows import Accuracy, Fallback, Row, Speedup
from cmt.targets.base import SIMULATED
from cmt.targets.settings import DEVICE

NOT_MEASURED = "n/a"
QUANTILES = tuple(range(0, 101, 5))
"""Percentiles of the report's latency distributions."""


_MEASUREMENTS = {
    "bytes": "file size",
    "measured_by": "runtime",
    "accuracy": "accuracy",
    "latency_ms": "latency",
    "throughput_ips": "throughput",
    "speedup_vs_baseline": "speed-up over the baseline",
    "speedup_vs_fp32_graph": "speed-up over the FP32 file",
    "peak_rss_mb": "peak memory",
}


_DETAILS = {
    "accuracy": {
        "drop_pp": "drop",
        "drop_ci95": "interval of the drop",
        "agreement": "agreement",
        "mcnemar_p": "McNemar p",
    },
    "latency_ms": {"first": "first run", "load": "loading time"},
}


def _or_missing(form: Callable[[Any], str]) -> Callable[[Any], str]:
    """The same form that also takes None, a figure that was not measured."""

    @wraps(form)
    def formatted(value: Any) -> str:
        return NOT_MEASURED if value is None else form(value)

    return formatted


@_or_missing
def points(value: float) -> str:
    """Signed, two decimals; what rounds to nothing has no sign."""
    text = f"{value:+.2f}"
    return text[1:] if float(text) == 0 else text


@_or_missing
def percent(value: float) -> str:
    """Two decimals, without the sign for percent."""
    return f"{value:.2f}"


@_or_missing
def milliseconds(value: float) -> str:
    """Two decimals, three below 10 ms."""
    return f"{value:.2f}" if value >= 10 else f"{value:.3f}"


@_or_missing
def share(value: float) -> str:
    """A share as percent; less than all never reads 100."""
    text = f"{100 * value:.2f} %"
    return "> 99.99 %" if value < 1 and text == "100.00 %" else text


@_or_missing
def p_value(value: float) -> str:
    """Four decimals."""
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


@_or_missing
def ratio(value: float) -> str:
    """Two decimals and an x."""
    return f"{value:.2f}x"


def ratio_text(value: float | None, bounds: Sequence[float] | None) -> str:
    """A ratio with its interval, without which it is not named."""
    return f"{ratio(value)} [{bounds[0]:.2f}, {bounds[1]:.2f}]" if bounds else NOT_MEASURED


@_or_missing
def speedup_text(value: Speedup) -> str:
    """`ratio_text` of a row's."""
    return ratio_text(value["ratio"], value["ci95"])


@_or_missing
def speedup_interval(value: Speedup) -> str:
    """The interval alone, where there is little room."""
    low, high = value["ci95"]
    return f"{low:.2f}-{high:.2f}"


@_or_missing
def megabytes(value: float) -> str:
    """Bytes as MB with one decimal."""
    return f"{value / 1e6:.1f} MB"


@_or_missing
def count(value: int) -> str:
    """Thousands set apart."""
    return f"{value:,}"


@_or_missing
def decimal(value: float) -> str:
    """One decimal, thousands set apart."""
    return f"{value:,.1f}"


def row_name(row: Row | Fallback) -> str:
    """How sentences and tables call a row."""
    return f"{row['target']} {row['precision']}"


def device_text(row: Row) -> str:
    """Where a file ran, behind its name; nothing where nobody chose."""
    device = row["settings"].get(DEVICE)
    return "" if device is None else f" on {device}"


def is_simulated(row: Row) -> bool:
    """The figures come from another runtime than the target's own."""
    return row.get("simulated", row["measured_by"] == SIMULATED)  # reports of before have no field


def interval(bounds: Sequence[float] | None) -> str:
    """A leading space and [low, high]; nothing where it was not measured."""
    return f" [{points(bounds[0])}, {points(bounds[1])}]" if bounds else ""


def drop_text(accuracy: Accuracy | None) -> str:
    """The drop with its interval, as far as they were measured."""
    if accuracy is None or accuracy["drop_pp"] is None:
        return NOT_MEASURED
    return points(accuracy["drop_pp"]) + interval(accuracy["drop_ci95"])


def resolvable(accuracy: Accuracy) -> str:
    """The smallest true drop that the images would show, rounded up; early reports have none."""
    value = accuracy.get("resolvable_pp")
    return NOT_MEASURED if value is None else f"{math.ceil(100 * value) / 100:.2f}"


def latency(row: Row, figure: str) -> float | None:
    """A figure of the row's `latency_ms`, where it was measured."""
    found: Mapping[str, Any] = row["latency_ms"] or {}
    return found.get(figure)


def p50(row: Row) -> float | None:
    """The median latency in ms, where it was measured."""
    return latency(row, "p50")


def run_time(row: Row) -> str:
    """The median latency with what it is the time of."""
    batch = row["settings"].get("batch")
    per = "" if batch is None else " per image" if batch == 1 else f" per batch of {batch}"
    return f"{milliseconds(p50(row))} ms{per}"


def reason(row: Row, field: str) -> str:
    """Why the field is null, without a full stop."""
    return row["reasons"][field].strip().rstrip(".")


def missing_fields(row: Row) -> dict[str, str]:
    """Field name -> plain name of every measurement of the row that is null."""
    fields: Mapping[str, Any] = row
    missing = {name: plain for name, plain in _MEASUREMENTS.items() if fields[name] is None}
    for group, details in _DETAILS.items():
        for name, plain in details.items():
            if fields[group] is not None and fields[group][name] is None:
                missing[f"{group}.{name}"] = plain
    return missing


def day_and_time(created: str) -> str:
    return created.replace("T", " ").replace("+00:00", " UTC").replace("Z", " UTC")
