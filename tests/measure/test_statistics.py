"""Accuracy and latency figures against hand-computed tables and published values."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmt.errors import GateError, InputError
from cmt.measure.statistics import (
    by_class,
    compare,
    label_rank,
    mcnemar_exact,
    paired_interval,
    smallest_resolvable,
    summarise_latency,
)

# Ten images of three classes: what the baseline and the candidate answer, and the truth.
LABELS = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
BASELINE = [0, 0, 0, 1, 1, 1, 2, 2, 0, 1]  # 8 right
CANDIDATE = [0, 0, 1, 1, 1, 2, 2, 0, 0, 2]  # 6 right: loses 3, gains 1


def logits_for(answers: list[int], classes: int = 3) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[answers]


def test_figures_match_a_table_worked_out_by_hand() -> None:
    result = compare(logits_for(CANDIDATE), logits_for(BASELINE), LABELS)
    assert result.images == 10
    assert result.top1 == pytest.approx(60)
    assert result.top5 == pytest.approx(100)  # three classes: all count
    assert result.drop_pp == pytest.approx(20)
    assert result.agreement == pytest.approx(0.6)  # images 2, 5, 7, 9 differ
    assert result.mcnemar_p == pytest.approx(10 / 16)  # 2 * (1 + 4) / 2^4
    # (3.5 - 1.5) / 12 = 0.1667; sqrt(5 - 4/12) / 12 = 0.1800; 1.96 of them to each side.
    assert result.drop_ci95 == pytest.approx((-18.617, 51.950), abs=1e-3)


def test_a_candidate_that_answers_like_the_baseline_has_an_interval_of_some_width() -> None:
    result = compare(logits_for(BASELINE), logits_for(BASELINE), LABELS)
    assert (result.drop_pp, result.agreement, result.mcnemar_p) == (0, 1, 1)
    low, high = result.drop_ci95
    assert low == pytest.approx(-high)
    assert high == pytest.approx(100 * 1.959964 / 12, abs=1e-3)


def test_the_figures_are_plain_json_values() -> None:
    figures = asdict(compare(logits_for(CANDIDATE), logits_for(BASELINE), LABELS))
    assert json.loads(json.dumps(figures)) == {**figures, "drop_ci95": list(figures["drop_ci95"])}


@pytest.mark.parametrize(
    ("lost", "gained", "images", "expected"),
    [
        # Complete response before and after consolidation (Cavo et al. 2012), as tabled for
        # the Agresti-Min interval in Fagerland, Lydersen and Laake, "Statistical Analysis of
        # Contingency Tables", chapter 8.
        (6, 16, 161, (-0.1182, -0.0045)),
        # Airway hyper-responsiveness (Bentur et al. 2009), worked out by hand.
        (1, 7, 21, (-0.4932, -0.0285)),
    ],
)
def test_interval_reproduces_textbook_tables(
    lost: int, gained: int, images: int, expected: tuple[float, float]
) -> None:
    assert paired_interval(lost, gained, images) == pytest.approx(expected, abs=5e-5)


def test_interval_holds_the_estimate_for_every_small_table() -> None:
    for images in range(1, 25):
        for lost, gained in itertools.product(range(images + 1), repeat=2):
            if lost + gained > images:
                continue
            low, high = paired_interval(lost, gained, images)
            assert -1 <= low < high <= 1
            assert low <= (lost - gained) / images <= high


@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 9000))
def test_interval_mirrors_when_the_sides_are_swapped(lost: int, gained: int, rest: int) -> None:
    images = lost + gained + rest + 1
    low, high = paired_interval(lost, gained, images)
    assert paired_interval(gained, lost, images) == pytest.approx((-high, -low))


def test_interval_covers_the_true_difference_about_as_often_as_it_says() -> None:
    # The exact coverage at small discordance, where the plain Wald interval breaks down.
    images, p_lost, p_gained = 60, 0.03, 0.01
    covered = 0.0
    for lost, gained in itertools.product(range(images + 1), repeat=2):
        rest = images - lost - gained
        if rest < 0:
            continue
        low, high = paired_interval(lost, gained, images)
        if low <= p_lost - p_gained <= high:
            ways = math.comb(images, lost) * math.comb(images - lost, gained)
            covered += ways * p_lost**lost * p_gained**gained * (1 - p_lost - p_gained) ** rest
    assert 0.94 < covered < 0.995


def brute_force_p(lost: int, gained: int) -> float:
    """Add up every outcome of the coin tosses that is no likelier than the one seen."""
    tosses = lost + gained
    weights = [math.comb(tosses, heads) for heads in range(tosses + 1)]
    seen = weights[lost]
    return float(Fraction(sum(w for w in weights if w <= seen), 2**tosses))


def test_mcnemar_agrees_with_adding_up_every_outcome() -> None:
    for lost, gained in itertools.product(range(12), repeat=2):
        assert mcnemar_exact(lost, gained) == pytest.approx(brute_force_p(lost, gained))


def test_mcnemar_reproduces_published_values() -> None:
    assert mcnemar_exact(1, 7) == pytest.approx(0.0703, abs=5e-5)  # Bentur et al. 2009
    assert mcnemar_exact(6, 16) == pytest.approx(0.0525, abs=5e-5)  # Cavo et al. 2012
    assert mcnemar_exact(0, 0) == 1


def test_mcnemar_stays_right_for_counts_that_overflow_floats() -> None:
    tosses, tail = 20_000, range(9_601)
    terms = (
        math.exp(
            math.lgamma(tosses + 1)
            - math.lgamma(k + 1)
            - math.lgamma(tosses - k + 1)
            - tosses * math.log(2)
        )
        for k in tail
    )
    assert mcnemar_exact(9_600, 10_400) == pytest.approx(2 * math.fsum(terms), rel=1e-8)
    assert mcnemar_exact(0, 5_000) == 0  # 2^-4999 is below the smallest float


def test_a_network_that_answers_the_same_for_all_classes_is_not_called_right() -> None:
    flat = np.zeros((10, 10), np.float32)
    labels = np.arange(10)
    result = compare(flat, logits_for(list(range(10)), 10), labels)
    assert result.top1 == pytest.approx(10)
    assert result.top5 == pytest.approx(50)


def test_rank_follows_a_stable_sort() -> None:
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 4, (200, 9)).astype(np.float32)
    labels = rng.integers(0, 9, 200)
    order = np.argsort(-logits, axis=1, kind="stable")
    expected = [
        int(np.flatnonzero(row == label)[0]) for row, label in zip(order, labels, strict=True)
    ]
    assert label_rank(logits, labels).tolist() == expected


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_broken_logits_fail_the_gate_and_are_counted(broken: float) -> None:
    logits = logits_for(CANDIDATE)
    logits[[2, 5], 0] = broken
    with pytest.raises(GateError, match="candidate answers 2 of 10 images"):
        compare(logits, logits_for(BASELINE), LABELS)
    with pytest.raises(GateError, match="baseline answers 2 of 10 images"):
        compare(logits_for(BASELINE), logits, LABELS)


def test_labels_that_the_network_does_not_know_are_refused() -> None:
    logits = logits_for(BASELINE)
    with pytest.raises(InputError, match="3 classes"):
        compare(logits, logits, [3, *LABELS[1:]])
    with pytest.raises(InputError, match="at least one"):
        compare(logits[:0], logits[:0], [])
    with pytest.raises(ValueError, match="shapes differ"):
        compare(logits, logits[:9], LABELS)


def test_latency_percentiles_and_spread() -> None:
    summary = summarise_latency([float(i) for i in range(1, 102)], first=500.0, load=None)
    assert (summary["p50"], summary["p90"], summary["p99"]) == (51, 91, 100)
    assert summary["mean"] == 51
    assert summary["std"] == pytest.approx(math.sqrt(101 * 102 / 12))
    assert (summary["iterations"], summary["first"], summary["load"]) == (101, 500, None)


def test_one_run_has_no_spread_and_none_is_an_error() -> None:
    assert summarise_latency([2.5], 3.0, 4.0)["std"] == 0
    with pytest.raises(ValueError, match="no basis"):
        summarise_latency([], 3.0, 4.0)


TABLES = st.integers(2, 6).flatmap(
    lambda classes: st.lists(
        st.tuples(*[st.integers(0, classes - 1)] * 3), min_size=1, max_size=60
    ).map(lambda rows: (classes, np.array(rows)))
)


@given(TABLES)
def test_figures_of_any_answers_fit_together(table: tuple[int, np.ndarray]) -> None:
    classes, rows = table
    candidate, baseline, labels = rows.T
    ours = compare(logits_for(candidate, classes), logits_for(baseline, classes), labels)
    theirs = compare(logits_for(baseline, classes), logits_for(candidate, classes), labels)
    assert ours.top1 == pytest.approx(100 * (candidate == labels).mean())
    assert ours.drop_pp == pytest.approx(theirs.top1 - ours.top1)
    assert ours.drop_pp == pytest.approx(-theirs.drop_pp)
    assert ours.mcnemar_p == theirs.mcnemar_p
    assert 0 <= ours.mcnemar_p <= 1
    assert ours.drop_ci95[0] <= ours.drop_pp <= ours.drop_ci95[1]
    assert ours.top1 <= ours.top5 <= 100
    assert ours.agreement == theirs.agreement == pytest.approx((candidate == baseline).mean())


@given(st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=80))
def test_percentiles_are_in_order_and_among_the_times(times: list[float]) -> None:
    summary = summarise_latency(times, first=1.0, load=None)
    assert min(times) <= summary["p50"] <= summary["p90"] <= summary["p99"] <= max(times)
    assert summary["std"] >= 0
    assert summarise_latency(times[::-1], 1.0, None)["p50"] == summary["p50"]


def test_the_smallest_drop_that_images_would_show_is_shown_by_four_of_five_sets() -> None:
    images, lost, gained = 2000, 40, 20
    drop = smallest_resolvable(lost, gained, images)
    changing = (lost + gained + 1) / (images + 2)
    rng = np.random.default_rng(0)
    shares = [(changing + drop) / 2, (changing - drop) / 2, 1 - changing]
    sets = rng.multinomial(images, shares, 2000)
    shown = np.mean([mcnemar_exact(int(a), int(b)) < 0.05 for a, b, _ in sets])
    assert shown == pytest.approx(0.8, abs=0.04)  # the exact test is a little strict


def test_more_images_resolve_less_and_none_that_changed_is_no_proof() -> None:
    drops = [smallest_resolvable(0, 0, images) for images in (1, 100, 2000, 10_000)]
    assert drops == sorted(drops, reverse=True)
    assert drops[0] == pytest.approx(1)
    assert drops[2] == pytest.approx((1.96 + 0.84) ** 2 / 2000, rel=0.01)
    assert smallest_resolvable(30, 30, 2000) > drops[2]


def test_every_class_is_counted_the_worst_first() -> None:
    baseline, labels = logits_for([0, 0, 1, 2], 4), np.array([0, 0, 1, 3])
    assert by_class(logits_for([0, 2, 1, 3], 4), baseline, labels) == [
        (0, {"images": 2, "baseline_top1": 100.0, "top1": 50.0}),
        (1, {"images": 1, "baseline_top1": 100.0, "top1": 100.0}),
        (3, {"images": 1, "baseline_top1": 0.0, "top1": 100.0}),
    ]
