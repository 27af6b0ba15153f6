"""The report's figures from raw measurements: paired accuracy and latency percentiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt.errors import GateError, InputError
from cmt.measure.shards import FileAnswers
from cmt.report.figures import QUANTILES
from cmt.report.rows import ClassCounts, Latency

TOP_K = 5
# Two-sided 95 % quantile of the standard normal distribution.
_Z95 = 1.959963984540054
# One-sided 80 % quantile.
_Z80 = 0.8416212335729143
MOST_IMAGES = 10_000_000
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Accuracy:
    """The report's `accuracy`: a candidate on labelled images, paired with the baseline.

    Attributes:
        top1, top5: percent of images; where there are fewer than five classes, `top5` counts
            all of them.
        images: how many images stand behind every figure here.
        drop_pp: the baseline's top-1 minus the candidate's, in percentage points; positive is
            worse.
        drop_ci95: 95 % interval (low, high) of the drop, paired by image, in points.
        agreement: share of images, 0 to 1, with the same first answer as the baseline, right
            or wrong.
        mcnemar_p: exact two-sided p of "candidate and baseline are right equally often".
        resolvable_pp: the smallest true drop, in points, that this many images would show; see
            `smallest_resolvable`.
    """

    top1: float
    top5: float
    images: int
    drop_pp: float
    drop_ci95: tuple[float, float]
    agreement: float
    mcnemar_p: float
    resolvable_pp: float


def compare(
    logits: NDArray[np.float32],
    baseline_logits: NDArray[np.float32],
    labels: Sequence[int] | NDArray[np.integer[Any]],
) -> Accuracy:
    """Accuracy of a candidate, paired image by image with the baseline.

    Args:
        logits, baseline_logits: (images, classes), the same images in the same order.
        labels: the class index of each image.

    Raises:
        GateError: logits that are NaN or infinite; such an answer would be counted as a class.
        InputError: no images, or labels that the classes do not cover.
    """
    truth = np.asarray(labels)
    if logits.shape != baseline_logits.shape or logits.shape[:1] != truth.shape:
        raise ValueError(
            f"shapes differ: logits {logits.shape}, baseline {baseline_logits.shape}, "
            f"labels {truth.shape}"
        )
    _, classes = logits.shape
    _check_labels(truth, classes)
    _check_finite(np.asarray(np.isfinite(logits).all(axis=1)), "the candidate")
    _check_finite(np.asarray(np.isfinite(baseline_logits).all(axis=1)), "the baseline")
    rank, baseline_rank = label_rank(logits, truth), label_rank(baseline_logits, truth)
    same = logits.argmax(1) == baseline_logits.argmax(1)
    return paired_accuracy(rank == 0, rank < TOP_K, baseline_rank == 0, same)


def compare_answers(
    answers: FileAnswers, baseline: FileAnswers, labels: NDArray[np.integer[Any]]
) -> Accuracy:
    """`compare` of what is kept of answers, which gives the same and raises the same."""
    _check_labels(labels, answers.classes)
    _check_finite(answers.finite, "the candidate")
    _check_finite(baseline.finite, "the baseline")
    hits, before = answers.first == labels[:, None], baseline.first[:, 0]
    same = answers.first[:, 0] == before
    return paired_accuracy(hits[:, 0], hits.any(1), before == labels, same)


def paired_accuracy(right: Flags, in_top: Flags, baseline_right: Flags, same: Flags) -> Accuracy:
    """`compare` of answers that are judged already, each (images,) and of the same images.

    Args:
        right: the candidate's first answer is the label.
        in_top: the label is among its first five.
        baseline_right: the baseline's first answer is the label.
        same: both have the same first answer.
    """
    images = len(right)
    lost = int(np.count_nonzero(baseline_right & ~right))
    gained = int(np.count_nonzero(right & ~baseline_right))
    low, high = paired_interval(lost, gained, images)
    return Accuracy(
        top1=100 * float(right.mean()),
        top5=100 * float(in_top.mean()),
        images=images,
        drop_pp=100 * (lost - gained) / images,
        drop_ci95=(100 * low, 100 * high),
        agreement=float(same.mean()),
        mcnemar_p=mcnemar_exact(lost, gained),
        resolvable_pp=100 * smallest_resolvable(lost, gained, images),
    )


def _check_labels(labels: NDArray[np.integer[Any]], classes: int) -> None:
    if not len(labels):
        raise InputError("no validation images: accuracy needs at least one")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"labels run from {labels.min()} to {labels.max()}, but the network has {classes} "
            "classes: use the images it was trained for"
        )


def _check_finite(finite: Flags, whose: str) -> None:
    broken = int(np.count_nonzero(~finite))
    if broken:
        raise GateError(
            f"{whose} answers {broken:,} of {len(finite):,} images with NaN or infinite logits"
        )


def label_rank(logits: NDArray[np.float32], labels: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """How many classes come before the right one; of equal logits the lower index comes first.

    The tie rule is that of argmax. Without it a network that answers the same number for
    every class would always have the right class among its best.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    before = np.arange(logits.shape[1])[None] < labels[:, None]
    return np.count_nonzero((logits > own) | ((logits == own) & before), axis=1).astype(np.int64)


def paired_interval(lost: float, gained: float, images: int) -> tuple[float, float]:
    """95 % interval of the paired difference (lost - gained) / images.

    Adjusted Wald ("Wald+2") of A. Agresti and Y. Min, "Simple improved confidence intervals
    for comparing matched proportions", Statistics in Medicine 24 (2005) 729-740: half an
    image is added to each cell of the two-by-two table, so that the interval keeps a width
    when no image changed sides. Cut off at -1 and 1.

    Args:
        lost: images that only the baseline gets right.
        gained: images that only the candidate gets right.
    """
    total = images + 2
    centre = (lost - gained) / total
    deviation = math.sqrt(lost + gained + 1 - (lost - gained) ** 2 / total) / total
    return max(-1.0, centre - _Z95 * deviation), min(1.0, centre + _Z95 * deviation)


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided exact McNemar p: the discordant images as tosses of a fair coin.

    In whole numbers up to the one division, so that no count is too large for it.
    """
    tosses = lost + gained
    ways = tail = 1
    for heads in range(min(lost, gained)):
        ways = ways * (tosses - heads) // (heads + 1)
        tail += ways
    return min(1.0, 2 * tail / (1 << tosses))


def smallest_resolvable(lost: int, gained: int, images: int) -> float:
    """The smallest true drop, a share, that this many images would show.

    "Show" means that four of five such sets of images (power 80 %) would give a McNemar p below
    0.05, two-sided. R. J. Connor, "Sample size for testing differences in proportions for the
    paired-sample design", Biometrics 43 (1987) 207-211, gives the images that a difference d takes
    where a share s of them changes sides: (1.96 sqrt(s) + 0.84 sqrt(s - d^2))^2 / d^2. It is solved
    for d, with s as observed, half an image added to each cell of the two-by-two table as in
    `paired_interval`, but never below d: a drop of d changes at least that many. At most 1.

    Args:
        lost, gained: as for `paired_interval`.
    """
    observed = (lost + gained + 1) / (images + 2)

    def needed(drop: float) -> float:
        changing = max(observed, drop)
        root = _Z95 * math.sqrt(changing) + _Z80 * math.sqrt(max(changing - drop**2, 0.0))
        return (root / drop) ** 2

    low, high = 0.0, 1.0
    for _ in range(40):  # down to the last digits of a float32
        middle = (low + high) / 2
        low, high = (middle, high) if needed(middle) > images else (low, middle)
    return high


def images_to_confirm(lost: int, gained: int, images: int, limit: float) -> int | None:
    """How many images would be likely to confirm that a drop keeps `limit`, a share.

    "Confirm" means that the upper end of `paired_interval` is within the limit; "likely", that it
    is for four of five such sets (power 80 %), where images change sides as often as they did here,
    half an image added to each cell of the two-by-two table as in `paired_interval`. To three
    digits, rounded up; None where ten million would not do, as where the drop is at the limit.

    Args:
        lost, gained: as for `paired_interval`.
    """
    losing, gaining = (lost + 0.5) / (images + 2), (gained + 0.5) / (images + 2)
    deviation = math.sqrt(losing + gaining - (losing - gaining) ** 2)

    def confirms(count: int) -> bool:
        upper = paired_interval(losing * count, gaining * count, count)[1]
        return upper + _Z80 * deviation / math.sqrt(count) <= limit

    high = 1
    while not confirms(high):
        if high > MOST_IMAGES:
            return None
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if confirms(middle) else (middle, high)
    unit = 10 ** max(0, len(str(high)) - 3)
    return -(-high // unit) * unit


def summarise_latency(
    milliseconds: Sequence[float], first: float | None, load: float | None
) -> Latency:
    """The report's `latency_ms` of one file.

    Args:
        milliseconds: one entry per timed run, warm-up left out.
        first: the very first run after loading; None where it was not taken.
        load: reading and compiling the file; None where it was not taken.
    """
    times = np.asarray(milliseconds, np.float64)
    if not times.size or not np.isfinite(times).all():
        raise ValueError(f"{times.size} timed runs are no basis for a latency")
    p50, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
    return {
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "mean": float(times.mean()),
        "std": float(times.std(ddof=1)) if times.size > 1 else 0.0,
        "quantiles": [float(value) for value in np.percentile(times, QUANTILES)],
        "iterations": int(times.size),
        "first": first,
        "load": load,
    }


def by_class(
    first: NDArray[np.integer[Any]],
    baseline_first: NDArray[np.integer[Any]],
    labels: NDArray[np.integer[Any]],
) -> list[tuple[int, ClassCounts]]:
    """Top-1 of every class that has images, by its index, the one that lost most first.

    Args:
        first, baseline_first: (images,) first answers to the same images in the same order.
        labels: (images,) class indices.
    """
    right, before = first == labels, baseline_first == labels
    rows: dict[int, ClassCounts] = {
        int(index): {
            "images": int(mine.sum()),
            "baseline_top1": 100 * float(before[mine].mean()),
            "top1": 100 * float(right[mine].mean()),
        }
        for index in np.unique(labels)
        for mine in [labels == index]
    }
    return sorted(rows.items(), key=lambda item: item[1]["top1"] - item[1]["baseline_top1"])


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How many times as fast as `theirs` `ours` is: median and quartiles over the rounds.

    Args:
        ours, theirs: milliseconds, one number for each round.
    """
    low, median, high = np.percentile(np.divide(theirs, ours), (25, 50, 75))
    return {"median": float(median), "q1": float(low), "q3": float(high)}
