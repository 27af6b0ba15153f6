"""The search for the fewest units in float: what it tries, what it settles for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cmt.quantize.search import Lever, Search, Units, by_gain, pareto

ORDER = [f"unit {i}" for i in range(10)]


def make_search(
    changed: Callable[[Units], float],
    drop: Callable[[Units], float],
    limit: float = 0.5,
    clock: Callable[[], float] = lambda: 0.0,
) -> Search:
    return Search(
        order=ORDER,
        most=len(ORDER) - 1,
        changed=changed,
        drop=drop,
        limit=limit,
        seconds=60,
        clock=clock,
    )


def test_units_go_by_error_for_their_cost_and_noise_in_time_does_not_decide() -> None:
    levers = {
        "costly": Lever(error=3.0, cost=0.5, layers=1),
        "cheap": Lever(error=1.0, cost=0.02, layers=1),
        "faster in float": Lever(error=0.9, cost=-0.04, layers=1),
    }
    assert by_gain(levers) == ["faster in float", "cheap", "costly"]


@pytest.mark.parametrize("needed", range(1, 10))
def test_no_more_units_go_back_than_it_takes(needed: int) -> None:
    search = make_search(
        changed=lambda units: 0.0 if len(units) >= needed else 0.2,
        drop=lambda units: 0.1 if len(units) >= needed else 9.0,
    )
    assert search.run() == set(ORDER[:needed])
    assert len(search.confirmed) == 1
    assert len(search.tried) <= 7


def test_validation_has_the_last_word() -> None:
    search = make_search(
        changed=lambda units: 0.0, drop=lambda units: 0.1 if len(units) >= 4 else 2.0
    )
    assert len(search.run() or ()) == 5  # 1, 2, 3, 5
    assert [len(units) for units in search.confirmed] == [1, 2, 3, 5]


def test_what_cannot_be_met_is_tried_to_the_end_and_the_best_is_kept() -> None:
    search = make_search(changed=lambda units: 0.5, drop=lambda units: 10.0 - len(units))
    assert search.run() is None
    assert not search.out_of_time
    assert search.best(start=10.0) == set(ORDER[:9])


def test_a_choice_that_is_worse_than_none_is_not_kept() -> None:
    search = make_search(changed=lambda units: 0.5, drop=lambda units: 3.0)
    assert search.run() is None
    assert search.best(start=2.0) == frozenset()


def test_out_of_time_the_best_one_tried_is_judged() -> None:
    ticks = iter(range(0, 1000, 25))
    search = make_search(
        changed=lambda units: 0.5 / (1 + len(units)),
        drop=lambda units: 5.0 - len(units),
        clock=lambda: next(ticks),
    )
    assert search.run() is None
    assert search.out_of_time
    largest = max(map(len, search.tried))
    assert list(search.confirmed) == [frozenset(ORDER[:largest])]


def test_points_that_another_one_beats_are_not_on_the_front() -> None:
    assert pareto([(1.0, 4.0), (2.0, 2.0), (3.0, 3.0), (2.0, 2.0)]) == [True, True, False, True]
