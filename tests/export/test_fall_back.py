"""The gate on made-up errors, times and drops: what can go back, what it costs, what is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from cmt.export.gate import (
    TIMED_UNITS,
    Limits,
    Trial,
    UnitError,
    fall_back,
    levers_of,
    unit_errors,
)
from cmt.quantize.search import Lever, Units
from cmt.report.rows import Speedup

LIMITS = Limits(max_drop=0.5, minutes=1.0)
NAMES = [f"unit {i}" for i in range(6)]


@dataclass
class MadeUp(Trial):
    """A file that needs these units in float; each in float costs this much time."""

    needed: Units
    costs: dict[str, float] | None = None
    drop_without: float = 3.0
    timed: list[Sequence[Units]] = field(default_factory=list)

    def changed(self, units: Units) -> float:
        return 0.0 if units >= self.needed else 0.2

    def drop(self, units: Units) -> float:
        return 0.1 if units >= self.needed else self.drop_without

    def slowdowns(self, choices: Sequence[Units]) -> list[Speedup] | None:
        self.timed.append(choices)
        if self.costs is None:
            return None
        ratios = [1 + sum(self.costs[unit] for unit in units) for units in choices]
        return [{"ratio": one, "ci95": [0.9 * one, 1.1 * one], "rounds": 9} for one in ratios]

    def size(self, units: Units) -> int:
        return 1000 + 100 * len(units)


def levers(*errors: float) -> dict[str, Lever]:
    return {f"unit {i}": Lever(error, cost=0.1, layers=i + 1) for i, error in enumerate(errors)}


def chosen(entry: dict[str, Any]) -> dict[str, Any]:
    (point,) = (point for point in entry["points"] if point["chosen"])
    return point


def test_a_unit_without_a_number_errs_beyond_all_others() -> None:
    rows = [
        {"unit": "a", "sqnr_db": 20.0, "layers": 2, "macs": 10},
        {"unit": "b", "sqnr_db": None, "layers": 1, "macs": 5},
    ]
    assert unit_errors(rows) == {"a": UnitError(0.01, 2, 10), "b": UnitError(np.inf, 1, 5)}


def test_cost_is_the_time_of_the_worst_units_and_the_multiply_adds_of_the_rest() -> None:
    errors = {f"unit {i}": UnitError(i + 1.0, 1, 10) for i in range(TIMED_UNITS + 2)}
    trial = MadeUp(frozenset(), dict.fromkeys(errors, 0.3))
    found, words = levers_of(errors, trial, None)
    assert words == "measured time; 2 units of small error by multiply-adds"
    assert found["unit 9"].cost == pytest.approx(0.3)
    assert found["unit 0"].cost == pytest.approx(0.1)
    ((choices,),) = [trial.timed]
    assert frozenset({"unit 0"}) not in choices
    assert len(choices) == TIMED_UNITS


def test_where_nothing_can_be_timed_the_cost_is_the_share_of_the_multiply_adds() -> None:
    errors = {"a": UnitError(1.0, 1, 30), "b": UnitError(1.0, 1, 10)}
    found, words = levers_of(errors, MadeUp(frozenset()), "no NVIDIA GPU on this machine")
    assert words == "share of multiply-adds: no NVIDIA GPU on this machine"
    assert levers_of(errors, MadeUp(frozenset()), None)[1].endswith(": this machine was busy")
    assert (found["a"].cost, found["b"].cost) == (0.75, 0.25)


@pytest.mark.parametrize("needed", [{"unit 0"}, {"unit 0", "unit 1"}, {"unit 0", "unit 3"}])
def test_what_keeps_the_limit_is_found_and_its_layers_are_counted(needed: set[str]) -> None:
    trial = MadeUp(frozenset(needed), dict.fromkeys(NAMES, 0.1))
    units, entry = fall_back(trial, levers(6, 5, 4, 3, 2, 1), LIMITS, start=3.0)
    assert units >= needed
    assert entry["met"]
    assert not entry["out_of_time"]
    assert entry["layers"] == 21
    point = chosen(entry)
    assert set(point["float"]) == units
    assert point["float_layers"] == sum(NAMES.index(unit) + 1 for unit in units)
    assert point["drop_pp"] == 0.1
    assert point["slowdown"] == pytest.approx(1 + 0.1 * len(units))
    assert point["slowdown_ci95"][0] == pytest.approx(0.9 * point["slowdown"])


def test_the_first_point_is_the_file_with_nothing_in_float() -> None:
    _, entry = fall_back(
        MadeUp(frozenset({"unit 0"}), {"unit 0": 0.1, "unit 1": 0.1}), levers(2, 1), LIMITS, 3.0
    )
    first = entry["points"][0]
    assert (first["float"], first["drop_pp"], first["slowdown"]) == ([], 3.0, 1.0)


def test_never_do_all_units_go_back() -> None:
    trial = MadeUp(frozenset(NAMES), dict.fromkeys(NAMES, 0.1))
    units, entry = fall_back(trial, levers(6, 5, 4, 3, 2, 1), LIMITS, start=3.0)
    assert not entry["met"]
    assert units == frozenset()  # nothing did better than nothing
    assert max(len(point["float"]) for point in entry["points"]) == len(NAMES) - 1


def test_answers_that_are_no_numbers_have_no_drop_in_the_report() -> None:
    trial = MadeUp(frozenset({"unit 0"}), {"unit 0": 0.1, "unit 1": 0.1})
    _, entry = fall_back(trial, levers(2, 1), LIMITS, start=float("inf"))
    assert entry["points"][0]["drop_pp"] is None
    assert entry["met"]


def test_without_times_the_smaller_file_is_the_better_one() -> None:
    trial = MadeUp(frozenset({"unit 0"}))
    _, entry = fall_back(trial, levers(3, 2, 1), LIMITS, start=3.0)
    assert [point["slowdown"] for point in entry["points"]] == [None] * len(entry["points"])
    assert [point["bytes"] for point in entry["points"]] == [1000, 1100]
    assert all(point["pareto"] for point in entry["points"])  # one is smaller, one errs less


def test_out_of_time_is_said_and_the_best_so_far_is_kept() -> None:
    trial = MadeUp(frozenset({"unit 0"}), dict.fromkeys(NAMES, 0.1))
    units, entry = fall_back(trial, levers(6, 5, 4), Limits(0.5, minutes=0.0), start=3.0)
    assert entry["out_of_time"]
    assert units == frozenset()


def test_a_choice_that_drops_less_than_nothing_in_float_is_kept_though_it_does_not_do() -> None:
    trial = MadeUp(frozenset(NAMES), dict.fromkeys(NAMES, 0.1), drop_without=1.0)
    units, entry = fall_back(trial, levers(6, 5, 4, 3, 2, 1), LIMITS, start=3.0)
    assert not entry["met"]
    assert len(units) > 0
    assert chosen(entry)["drop_pp"] == 1.0
