"""The gate: which units of a file go back to float so that it keeps the accepted drop.

Choices are made on held-out calibration images, never on validation ones, which only confirm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cmt.export.context import Context
from cmt.export.file_maker import ARITHMETIC, FileMaker
from cmt.export.graphs import NONE, Candidate, converted_graph
from cmt.export.unit_sensitivity import Sensitivity
from cmt.measure.shards import FileAnswers
from cmt.measure.statistics import compare_answers
from cmt.quantize.search import Lever, Search, Units, by_gain, pareto
from cmt.quantize.sensitivity import answers_changed, relative_error
from cmt.report.rows import Fallback, Found, PartErrors, Point, Speedup
from cmt.targets.settings import PRECISION

SAME: Speedup = {"ratio": 1.0, "ci95": [1.0, 1.0], "rounds": 0}
"""A file beside itself."""
TIMED_UNITS = 8
"""The units with the largest errors, whose time in float is taken before the gate chooses."""


class Trial(Protocol):
    """One file with any of its units in float, as the gate asks of it."""

    def changed(self, units: Units) -> float:
        """The share of held-out images, 0 to 1, that it answers otherwise than torch."""
        ...

    def drop(self, units: Units) -> float:
        """Points of top-1 on the validation images; infinite where answers are no numbers."""
        ...

    def slowdowns(self, choices: Sequence[Units]) -> list[Speedup] | None:
        """How many times as long it takes with each; None where no time can be taken."""
        ...

    def size(self, units: Units) -> int:
        """Bytes."""
        ...


@dataclass(frozen=True)
class Limits:
    """The largest accepted drop in points, and for how long units are looked for."""

    max_drop: float
    minutes: float


@dataclass(frozen=True)
class Verdict:
    """What the gate made of a file.

    Attributes:
        units: what is to stay float.
        entry: what was tried, for the report's `fallbacks`; None where nothing was.
        warning: why nothing could be tried.
    """

    units: Units = NONE
    entry: Fallback | None = None
    warning: str | None = None


@dataclass(frozen=True)
class UnitError:
    """What a unit loses by itself: error power relative to the logits', layers, multiply-adds."""

    error: float
    layers: int
    macs: int


def unit_errors(rows: Iterable[PartErrors]) -> dict[str, UnitError]:
    """By unit, from the rows of `Sensitivity.units`."""
    return {
        row["unit"]: UnitError(
            np.inf if row["sqnr_db"] is None else 10 ** (-row["sqnr_db"] / 10),
            row["layers"],
            row["macs"],
        )
        for row in rows
    }


def levers_of(
    errors: Mapping[str, UnitError], trial: Trial, not_timed: str | None
) -> tuple[dict[str, Lever], str]:
    """What can go back and what it costs; and what that cost is, in words.

    Args:
        not_timed: why the file cannot be timed here; None where it can.
    """
    total = sum(unit.macs for unit in errors.values()) or 1
    share = {name: unit.macs / total for name, unit in errors.items()}
    worst = sorted(errors, key=lambda name: -errors[name].error)[:TIMED_UNITS]
    times = trial.slowdowns([frozenset({name}) for name in worst]) if worst else []
    if times is None:
        cost = f"share of multiply-adds: {not_timed or 'this machine was busy'}"
    else:
        share |= {name: time["ratio"] - 1 for name, time in zip(worst, times, strict=True)}
        cost = "measured time"
        if rest := len(errors) - len(worst):
            cost += f"; {rest} units of small error by multiply-adds"
    levers = {name: Lever(unit.error, share[name], unit.layers) for name, unit in errors.items()}
    return levers, cost


def fall_back(
    trial: Trial, levers: Mapping[str, Lever], limits: Limits, start: float
) -> tuple[Units, Found]:
    """The units that it takes to keep the limit, or that do best; and what was tried.

    Args:
        start: the drop with nothing in float.
    """
    search = Search(
        order=by_gain(levers),
        # All units of a graph in float would be another precision's file.
        most=max(len(levers) - 1, 1),
        changed=trial.changed,
        drop=trial.drop,
        limit=limits.max_drop,
        seconds=60 * limits.minutes,
        tried={NONE: trial.changed(NONE)},
    )
    met = search.run()
    units = search.best(start) if met is None else met
    return units, {
        "met": met is not None,
        "out_of_time": search.out_of_time,
        "layers": sum(lever.layers for lever in levers.values()),
        "points": _points(trial, levers, search, start, units),
    }


def _points(
    trial: Trial, levers: Mapping[str, Lever], search: Search, start: float, chosen: Units
) -> list[Point]:
    """A row for each choice that was tried, the first one with nothing in float."""
    tried = list(search.tried)
    times = trial.slowdowns(tried[1:]) if tried[1:] else []
    slowdowns = None if times is None else [SAME, *times]
    sizes = [trial.size(units) for units in tried]
    costs = sizes if slowdowns is None else [one["ratio"] for one in slowdowns]
    best = pareto(list(zip(search.tried.values(), costs, strict=True)))
    drops = {NONE: start, **search.confirmed}
    return [
        {
            "float": sorted(units),
            "float_layers": sum(levers[unit].layers for unit in units),
            "changed": search.tried[units],
            "drop_pp": drop if np.isfinite(drop := drops.get(units, np.nan)) else None,
            "slowdown": None if slowdowns is None else slowdowns[i]["ratio"],
            "slowdown_ci95": None if slowdowns is None else slowdowns[i]["ci95"],
            "bytes": sizes[i],
            "chosen": units == chosen,
            "pareto": best[i],
        }
        for i, units in enumerate(tried)
    ]


class FileTrial:
    """A run's candidate as a `Trial`.

    Args:
        reference: what torch answers on the validation images.
        held_out: the logits of torch on the held-out images.
    """

    def __init__(
        self,
        context: Context,
        files: FileMaker,
        candidate: Candidate,
        reference: FileAnswers,
        held_out: np.ndarray,
    ) -> None:
        self._context, self._files, self._candidate = context, files, candidate
        self._reference, self._held_out = reference, held_out

    def changed(self, units: Units) -> float:
        logits = self._files.held_out(self._candidate, units)[0]
        return answers_changed(logits, self._held_out)

    def drop(self, units: Units) -> float:
        return _drop(self._context, self._files, self._candidate, units, self._reference)

    def slowdowns(self, choices: Sequence[Units]) -> list[Speedup] | None:
        if self._candidate.target.not_timed is not None:
            return None
        return self._files.slowdowns(self._candidate, choices)

    def size(self, units: Units) -> int:
        return self._files.size(self._candidate, units)


def _drop(
    context: Context, files: FileMaker, candidate: Candidate, units: Units, reference: FileAnswers
) -> float:
    answers = files.answers(candidate, units)
    if not answers.finite.all():
        return float("inf")
    labels = context.images.validation.labels
    assert labels is not None
    return compare_answers(answers, reference, labels).drop_pp


def judge(
    context: Context,
    files: FileMaker,
    sensitivity: Sensitivity,
    candidate: Candidate,
    reference: FileAnswers,
    held_out: Callable[[], np.ndarray] | None,
) -> Verdict:
    """Let the gate judge a candidate's file.

    Args:
        reference: what torch answers on the validation images.
        held_out: the same on the held-out ones, asked for only where units may go back; None where
            there are none.
    """
    options, target = context.options, candidate.target
    if context.inputs.not_labelled is not None or not options.gate_minutes:
        return Verdict()
    start = _drop(context, files, candidate, NONE, reference)
    if start <= options.max_drop or candidate.precision == "fp32":  # nothing of that is narrow
        return Verdict()
    if held_out is None:
        return Verdict(
            warning=f"{candidate.name} exceeds --max-drop, and there are no images to choose on "
            "what goes back to float: give --calib-data"
        )
    expected = held_out()
    trial = FileTrial(context, files, candidate, reference, expected)
    name = converted_graph(candidate)
    errors = unit_errors(sensitivity.units(name)) if name is not None else {}
    if files.settings(candidate).get(PRECISION) == "bf16":
        half = files.held_out(Candidate(target, "fp16"))[0]
        errors[ARITHMETIC] = UnitError(relative_error(half, expected), 0, 0)
    if not errors:
        return Verdict()
    not_timed = None if target.not_timed is None else target.not_timed()
    levers, cost = levers_of(errors, trial, not_timed)
    units, found = fall_back(trial, levers, Limits(options.max_drop, options.gate_minutes), start)
    entry: Fallback = {
        "target": target.name,
        "precision": candidate.precision,
        "ranking_images": len(expected),
        "cost": cost,
        **found,
    }
    return Verdict(units, entry)
