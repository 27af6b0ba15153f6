"""Schedules are read as they are meant, and the learning rate follows them."""

from __future__ import annotations

import math

import pytest

from cmt import InputError
from cmt.training.schedule import Recipe, learning_rate, parse_schedule


def test_learning_rate_warms_up_and_then_falls_along_a_cosine() -> None:
    recipe = Recipe("ti", ((64, 100, 1),), learning_rate=1e-3, resize_ratio=1, warm_up=0.1)
    rates = [learning_rate(recipe, share / 100, 64) for share in range(101)]
    assert 0 < rates[0] < 1e-7
    assert rates[5] == pytest.approx(0.5e-3, rel=1e-3)
    assert rates[10] == pytest.approx(1e-3)
    assert rates[55] == pytest.approx(0.5e-3)
    assert rates[32] == pytest.approx(0.5e-3 * (1 + math.cos(math.pi * 22 / 90)))
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_learning_rate_is_linear_in_the_batch() -> None:
    recipe = Recipe("ti", ((64, 100, 1),), learning_rate=1e-3, resize_ratio=1)
    assert learning_rate(recipe, 0.5, 128) == pytest.approx(4 * learning_rate(recipe, 0.5, 32))


def test_share_counts_pixels_over_all_stages() -> None:
    recipe = Recipe("ti", ((32, 400, 4), (64, 100, 4)), 1e-3, 1)
    assert recipe.share(0, 0) == 0
    assert recipe.share(0, 200) == 0.25
    assert recipe.share(0, 400) == recipe.share(1, 0) == 0.5
    assert recipe.share(1, 100) == 1


@pytest.mark.parametrize("text", ["160:100:0", "160:0:1", "160:8:16", "100:64:8", "160", "a:b:c"])
def test_schedule_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_schedule(text)


@pytest.mark.parametrize("text", ["", "160", "160:10", "160:10:x", "160:10:4:2"])
def test_unreadable_schedules_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="size:images:batch"):
        parse_schedule(text)


def test_schedules_are_read_in_order() -> None:
    assert parse_schedule("64:100:8,160:20:4") == ((64, 100, 8), (160, 20, 4))
