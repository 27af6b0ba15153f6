"""What a file must keep to be shipped: `drop<=0.3,p50<=6ms,size<=12MB`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cmt.errors import InputError
from cmt.report.figures import NOT_MEASURED, count, decimal, milliseconds, percent, points, ratio

Row = Mapping[str, Any]
"""A row of a comparison, asked for fields by name."""


@dataclass(frozen=True)
class Metric:
    """A figure that a clause may limit.

    Attributes:
        group, field: where the row has it; no group for a field of the row itself.
        index: of a field that is a list.
        bounds: the field of the group that is the figure's interval.
        units: those that may follow the number; the first is the figure's own.
        form: the figure as text, without its unit.
        scale: what the row's figure is divided by to get that unit.
    """

    group: str | None
    field: str
    units: tuple[str, ...]
    form: Callable[[float], str]
    scale: float = 1.0
    index: int | None = None
    bounds: str | None = None

    def interval(self, row: Row) -> list[float]:
        """Both ends of the row's interval of the figure; none where it has none."""
        holder = row[self.group] if self.group is not None else None
        return (holder or {}).get(self.bounds) or []

    def value(self, row: Row) -> float | None:
        """The row's figure in the clause's unit; None where it was not measured."""
        holder = row if self.group is None else row[self.group] or {}
        value = holder.get(self.field)
        if value is not None and self.index is not None:
            value = value[self.index]
        return None if value is None else value / self.scale

    def reason(self, row: Row) -> str:
        """Why the row has no such figure."""
        reasons = row["reasons"]
        place = self.field if self.group is None else f"{self.group}.{self.field}"
        return reasons.get(place) or reasons.get(self.group or self.field) or "no reason stated"


def _whole(value: float) -> str:
    return count(round(value))


METRICS = {
    "drop": Metric("accuracy", "drop_pp", ("points", "pp"), points, bounds="drop_ci95"),
    "drop_upper": Metric("accuracy", "drop_ci95", ("points", "pp"), points, index=1),
    "images": Metric("accuracy", "images", ("images",), _whole),
    "top1": Metric("accuracy", "top1", ("%",), percent),
    "top5": Metric("accuracy", "top5", ("%",), percent),
    "p50": Metric("latency_ms", "p50", ("ms",), milliseconds),
    "p90": Metric("latency_ms", "p90", ("ms",), milliseconds),
    "p99": Metric("latency_ms", "p99", ("ms",), milliseconds),
    "size": Metric(None, "bytes", ("MB",), decimal, 1e6),
    "memory": Metric(None, "peak_rss_mb", ("MB",), decimal),
    "throughput": Metric(None, "throughput_ips", ("ips",), decimal),
    "speedup": Metric("speedup_vs_baseline", "ratio", ("x",), ratio, bounds="ci95"),
    "speedup_lower": Metric("speedup_vs_baseline", "ci95", ("x",), ratio, index=0),
    "batch": Metric("settings", "batch", ("images",), _whole),
}
COUNTS = ("batch", "images")
"""Figures that may equal a number."""
_OPERATORS = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_CLAUSE = re.compile(r"\s*(\w+)\s*(<=|>=|<|>|=)\s*([+-]?\d+(?:\.\d+)?)\s*([a-zA-Z%]*)\s*", re.ASCII)


@dataclass(frozen=True)
class Clause:
    """One requirement, such as `p50<=6ms`."""

    text: str
    metric: Metric
    keeps: Callable[[float, float], bool]
    limit: float

    def failure(self, row: Row) -> str | None:
        """What is wrong with the row, naming the clause; None where it keeps it."""
        value = self.metric.value(row)
        if value is None:
            return f"{self.text} failed: {NOT_MEASURED} ({self.metric.reason(row)})"
        if self.keeps(value, self.limit):
            return None
        ends = [self.metric.form(end).removesuffix("x") for end in self.metric.interval(row)]
        interval = f" [{', '.join(ends)}]" if ends else ""
        return f"{self.text} failed: {self._broken_by(value)}{interval}"

    def doubt(self, row: Row) -> str | None:
        """How far the interval of a figure that keeps the clause reaches beyond its limit."""
        beyond = [end for end in self.metric.interval(row) if not self.keeps(end, self.limit)]
        if not beyond or self.failure(row) is not None:
            return None
        return f"{self.text} is not confirmed: the interval reaches {self._broken_by(beyond[0])}"

    def _broken_by(self, value: float) -> str:
        """The figure and its unit, in as many digits as show that it breaks the clause."""
        text, digits = self.metric.form(value).removesuffix("x"), 2
        sign = "+" if text.startswith("+") else ""
        while self.keeps(float(text.replace(",", "")), self.limit):
            text = f"{value:{sign},.{digits}f}"
            digits += 1
        unit = self.metric.units[0]
        return f"{text}{'' if unit == 'x' else ' '}{unit}"


def parse_policy(text: str) -> tuple[Clause, ...]:
    """The clauses of a policy; raises InputError for what is none."""
    return tuple(_parse_clause(part) for part in text.split(","))


def _parse_clause(text: str) -> Clause:
    match = _CLAUSE.fullmatch(text)
    measured = match is not None and match[1] not in COUNTS and match[2] == "="
    if match is None or measured or not math.isfinite(float(match[3])):
        raise InputError(
            f"--require: '{text.strip()}' is no clause such as p50<=6ms; separate them by commas"
        )
    name, comparison, limit, unit = match.groups()
    if name not in METRICS:
        raise InputError(f"--require: unknown '{name}': choose from {', '.join(METRICS)}")
    metric = METRICS[name]
    if unit and unit not in metric.units:
        raise InputError(
            f"--require: {name} is not in {unit}: write {metric.units[0]}, or no unit at all"
        )
    clause = f"{name}{comparison}{limit}{unit}"
    return Clause(clause, metric, _OPERATORS[comparison], float(limit))
