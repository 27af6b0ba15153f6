"""The choice of ranges and weights, on made-up errors: the least one wins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest

from cmt.quantize.choice import Choice, choose
from cmt.quantize.ranges import METHODS

NEAREST = {"mse": 8.0, "entropy": 5.0, "percentile": 2.0, "minmax": 9.0}


class Judged:
    """`choose` on errors that are looked up, weights `fitted <method>`; notes what was asked."""

    def __init__(self, nearest: Mapping[str, float], fitted: Mapping[str, float]) -> None:
        self.nearest, self.fitted = nearest, fitted
        self.fits: list[str] = []

    def judge(self, method: str, weights: str | None) -> float:
        assert weights in (None, f"fitted {method}")
        return self.nearest[method] if weights is None else self.fitted[method]

    def fit(self, methods: Sequence[str]) -> dict[str, str]:
        self.fits += methods
        return {method: f"fitted {method}" for method in methods}

    def choose(self) -> Choice[str]:
        return choose(METHODS, self.judge, self.fit)


def test_weights_are_fitted_for_least_squares_and_for_what_is_best_without() -> None:
    judged = Judged(NEAREST, {"mse": 3.0, "percentile": 1.0})
    assert judged.choose() == Choice("percentile", "fitted percentile", 1.0)
    assert judged.fits == ["mse", "percentile"]


def test_weights_fitted_for_least_squares_win_where_they_err_least() -> None:
    judged = Judged(NEAREST, {"mse": 0.5, "percentile": 1.0})
    assert judged.choose() == Choice("mse", "fitted mse", 0.5)


def test_weights_are_fitted_once_where_least_squares_is_best_without() -> None:
    judged = Judged({**NEAREST, "mse": 1.0}, {"mse": 0.5})
    assert judged.choose() == Choice("mse", "fitted mse", 0.5)
    assert judged.fits == ["mse"]


@pytest.mark.parametrize("fitted", [2.0, 2.1, 3.2, math.inf, math.nan])
def test_fitted_weights_that_do_no_better_are_never_chosen(fitted: float) -> None:
    judged = Judged(NEAREST, {"mse": fitted, "percentile": fitted})
    assert judged.choose() == Choice("percentile", None, 2.0)


def test_fitted_weights_of_one_method_do_not_excuse_those_of_another() -> None:
    judged = Judged(NEAREST, {"mse": 1.5, "percentile": 1.9})
    assert judged.choose() == Choice("mse", "fitted mse", 1.5)


def test_what_gives_no_numbers_loses_to_anything_that_does() -> None:
    nearest = {**dict.fromkeys(METHODS, math.inf), "minmax": 70.0}
    judged = Judged(nearest, {"mse": math.inf, "minmax": math.inf})
    assert judged.choose() == Choice("minmax", None, 70.0)


def test_without_fitting_the_best_of_the_methods_is_taken() -> None:
    judged = Judged(NEAREST, {})
    assert choose(METHODS, judged.judge, None) == Choice("percentile", None, 2.0)


def test_ranges_that_were_learned_are_judged_alone() -> None:
    judged = Judged(NEAREST, {})
    assert choose(["entropy"], judged.judge, None) == Choice("entropy", None, 5.0)
