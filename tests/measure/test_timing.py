"""Speed-ups with their intervals, and what a busy machine's timings are good for."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from cmt.measure.disturbance import Usage
from cmt.measure.timing import RESTART, Timing, interval, speedup


def timing(medians: list[float], disturbed: list[bool] | None = None) -> Timing:
    rounds = [[ms, ms] for ms in medians]
    return Timing(1.0, 1.0, rounds, disturbed=disturbed or [False] * len(rounds))


def test_the_interval_covers_the_median_in_95_percent_of_cases() -> None:
    random = np.random.default_rng(0)
    for count in (6, 9, 15, 27):
        drawn = random.exponential(1.0, (10_000, count))  # as skewed as latencies are
        bounds = np.array([interval(list(row)) for row in drawn])
        covered = (bounds[:, 0] <= np.log(2)) & (np.log(2) <= bounds[:, 1])
        assert covered.mean() >= 0.945


def test_an_interval_narrows_with_more_rounds() -> None:
    values = np.random.default_rng(1).normal(10.0, 1.0, 27)
    few, many = interval(list(values[:9])), interval(list(values))
    assert many[1] - many[0] < few[1] - few[0]


def test_a_drifting_machine_does_not_move_a_speed_up() -> None:
    drift = np.linspace(1.0, 2.0, 9)
    found = speedup(timing(list(10 * drift)), timing(list(25 * drift)))
    assert found is not None
    assert found["ratio"] == pytest.approx(2.5)
    assert found["ci95"] == pytest.approx([2.5 * (1 - RESTART), 2.5 * (1 + RESTART)])


def test_disturbed_rounds_are_left_out_and_too_many_leave_nothing() -> None:
    noted = [False, True, False, False, True, False, False, False, True]
    ours, theirs = [10.0, 99.0, 10.0, 10.0, 99.0, 10.0, 10.0, 10.0, 99.0], [30.0] * 9
    found = speedup(timing(ours, noted), timing(theirs, noted))
    assert found is not None
    assert (found["ratio"], found["rounds"]) == (3.0, 6)
    assert timing(ours, noted).latency["p99"] == pytest.approx(10.0)

    busy = timing(ours, [True, *noted[1:]])
    assert speedup(busy, timing(theirs, busy.disturbed)) is None
    assert busy.busy is not None
    assert "in 4 of 9 rounds" in busy.busy
    assert busy.latency["p99"] == 99.0
    busy.usages += [Usage(wall=1.0, cpu=2.0)]
    assert busy.quality["disturbed"] == 4
    assert busy.quality["busy"]


def test_a_file_is_exactly_as_fast_as_itself() -> None:
    one = timing([10.0, 11.0, 12.0, 10.0, 11.0, 12.0])
    assert speedup(one, one) == {"ratio": 1.0, "ci95": [1.0, 1.0], "rounds": 6}


def test_timings_survive_being_stored() -> None:
    one = timing([10.0, 11.0])
    one.usages += [Usage(wall=1.0, cpu=2.0, waited=0.1, others=0.2), Usage(wall=1.0, cpu=2.0)]
    assert Timing.from_json(json.loads(json.dumps(dataclasses.asdict(one)))) == one
