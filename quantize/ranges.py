"""Ranges of 8-bit activations: what calibration counts, and how a range is chosen from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt.errors import InputError

LEVELS = 127
"""Symmetric int8 uses -127 ... 127."""
MSE = "mse"
METHODS = (MSE, "entropy", "percentile", "minmax")
"""How a range is chosen: least squared error, least Kullback-Leibler divergence as TensorRT's
calibrator searched it, the values that all but `_TAIL` stay within, or everything that was seen."""
_BINS = 8192
_LEAST = _BINS / float(np.finfo(np.float32).max)
_CLIPPING = np.linspace(0.2, 1.0, 81)
"""Candidate thresholds, as fractions of the largest magnitude."""
_TAIL = 1e-5

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


class Histogram:
    """Distribution of a stream of values of unknown range, in constant memory.

    The range doubles when a larger magnitude arrives and neighbouring bins merge, so at least
    half of the bins of one sign are always in use. Zero is an edge between two bins.
    """

    def __init__(self) -> None:
        self.limit = 0.0
        self.counts = np.zeros(2 * _BINS, np.int64)
        self._chosen: dict[tuple[bool, str], Levels] = {}

    def add(self, values: NDArray[np.float32]) -> None:
        """Count an array of any shape; raises InputError on NaN or infinity."""
        values = values.ravel()
        largest = float(max(-values.min(initial=0.0), values.max(initial=0.0)))
        if not np.isfinite(largest):
            raise InputError("calibration met a NaN or an infinity: check weights and images")
        if self.limit == 0.0:
            self.limit = largest
        while largest > self.limit > 0.0:
            self.limit *= 2
            self.counts = np.pad(self.counts.reshape(-1, 2).sum(1), _BINS // 2)
        # Where all is too small for a factor in float32, all is zero.
        factor = np.float32(_BINS / self.limit if self.limit > _LEAST else 0.0)
        bins = values * factor
        np.floor(bins, out=bins)
        bins += _BINS
        counts = np.bincount(bins.astype(np.intp), minlength=2 * _BINS + 1)
        counts[-2] += counts[-1]  # the limit itself
        self.counts += counts[:-1]
        self._chosen.clear()

    def levels(self, asymmetric: bool, method: str = MSE) -> Levels:
        """uint8 with a zero point, or int8 around zero, by one of `METHODS`.

        `MSE` for both ends: the upper one is searched with the lower one at its extreme, then the
        lower one. After GELU, the two differ so much that a common fraction would suit neither.
        """
        key = (asymmetric, method)
        if key not in self._chosen:
            self._chosen[key] = self._choose(asymmetric, method)
        return self._chosen[key]

    def _choose(self, asymmetric: bool, method: str) -> Levels:
        low, high = self._quantile(_TAIL) if method == "percentile" else self._edges()
        if method in ("minmax", "percentile"):
            return unsigned_levels(low, high) if asymmetric else signed_levels(max(-low, high))
        errors = partial(_squared_errors if method == MSE else _divergences, *self._used())

        def least(candidates: list[Levels]) -> Levels:
            return candidates[int(errors(candidates).argmin())]

        if not asymmetric:
            top = max(-low, high)
            return least([signed_levels(top * fraction) for fraction in _CLIPPING])
        best = least([unsigned_levels(low, high * fraction) for fraction in _CLIPPING])
        high = best.scale * (255 - best.zero_point)
        return least([unsigned_levels(low * fraction, high) for fraction in _CLIPPING])

    def share_outside(self, levels: Levels) -> float:
        """The share of what was counted, zeros left out, that no level is near."""
        centres, counts = self._used()
        low, high = levels.range
        nonzero = np.abs(centres) > self.limit / _BINS
        step = levels.scale / 2
        outside = (centres < low - step) | (centres > high + step)
        return float(counts[outside].sum() / max(counts[nonzero].sum(), 1))

    def _edges(self) -> tuple[float, float]:
        """The range of what was counted, zero included."""
        used = np.flatnonzero(self.counts)
        if len(used) == 0:
            return 0.0, 0.0
        width = self.limit / _BINS
        low, high = (used[0] - _BINS) * width, (used[-1] + 1 - _BINS) * width
        return min(low, 0.0), max(high, 0.0)

    def _quantile(self, tail: float) -> tuple[float, float]:
        """The range without the outermost `tail` of all values, zero included."""
        below = np.cumsum(self.counts)
        width = self.limit / _BINS
        cut = tail * below[-1]
        low = np.searchsorted(below, cut, "right")
        high = np.searchsorted(below, below[-1] - cut) + 1
        return min((low - _BINS) * width, 0.0), max((high - _BINS) * width, 0.0)

    def _used(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Centres and counts of the bins that are not empty."""
        used = np.flatnonzero(self.counts)
        centres = (used - _BINS + 0.5) * np.float64(self.limit / _BINS)
        return centres.astype(np.float64), self.counts[used]


# Errors of candidates, all of one kind, on the bins that are not empty. All that they take of the
# bins that a level is nearest to are sums, which are differences of running ones.


def _squared_errors(centres: Floats, counts: Counts, candidates: Sequence[Levels]) -> Floats:
    """Of the values after quantisation from those before."""
    levels, ends = _nearest_bins(centres, candidates)
    number, total, square = (np.diff(_running(counts * centres**power)[ends]) for power in range(3))
    return (square - 2 * levels * total + levels**2 * number).sum(1)


def _divergences(centres: Floats, counts: Counts, candidates: Sequence[Levels]) -> Floats:
    """Of the clipped values from what the levels keep of those within their range."""
    levels, ends = _nearest_bins(centres, candidates)
    begin = np.searchsorted(centres, levels[:, 0])
    end = np.searchsorted(centres, levels[:, -1], "right")
    ends = np.clip(ends, begin[:, None], end[:, None])
    running = _running(counts)
    kept, total = np.diff(running[ends]), max(running[-1], 1)
    # Each level gives what it holds to all of its bins alike.
    log_each = np.log(np.maximum(kept, 1) / np.maximum(np.diff(ends), 1))
    cross = (kept * log_each).sum(1)
    own = np.diff(_running(_x_log_x(counts))[np.stack([begin, end])], axis=0)[0]
    holds, rows = kept > 0, np.arange(len(kept))
    # What is clipped goes to the outermost bins.
    lowest = begin, holds.argmax(1), running[begin]
    highest = end - 1, -1 - holds[:, ::-1].argmax(1), running[-1] - running[end]
    for place, level, outside in (lowest, highest):
        count = np.append(counts, 0)[place]
        own += _x_log_x(count + outside) - _x_log_x(count)
        cross += outside * log_each[rows, level]
    divergence = (own - cross) / total + np.log(np.maximum(kept.sum(1), 1) / total)
    return np.select([end <= begin, end - begin == 1], [np.inf, 0.0], divergence)


def _nearest_bins(centres: Floats, candidates: Sequence[Levels]) -> tuple[Floats, Counts]:
    """The levels of each candidate, and between which places of `centres` each is the nearest."""
    low, high = candidates[0].steps
    steps = np.arange(low, high + 1) - np.array([[c.zero_point] for c in candidates])
    scales = np.array([[c.scale] for c in candidates])
    between = np.searchsorted(centres, (steps[:, 1:] - 0.5) * scales)
    return steps * scales, np.pad(between, ((0, 0), (1, 1)), constant_values=(0, len(centres)))


def _running(values: NDArray[Any]) -> NDArray[Any]:
    """Sums of the values before each place, and of all."""
    return np.concatenate([[0], np.cumsum(values)])


def _x_log_x(counts: Counts) -> Floats:
    logarithms: Floats = np.log(np.maximum(counts, 1))
    return counts * logarithms


def save_histograms(histograms: Mapping[str, Histogram], path: Path) -> None:
    """Write histograms by name as one .npz file."""
    np.savez_compressed(
        path,
        names=np.array(list(histograms)),
        limits=np.array([h.limit for h in histograms.values()]),
        counts=np.array([h.counts for h in histograms.values()]),
    )


def load_histograms(path: Path) -> dict[str, Histogram]:
    """What `save_histograms` wrote."""
    histograms = {}
    with np.load(path) as file:
        arrays = (file["names"].tolist(), file["limits"].tolist(), file["counts"])
    for name, limit, counts in zip(*arrays, strict=True):
        histograms[name] = Histogram()
        histograms[name].limit, histograms[name].counts = limit, counts
    return histograms


@dataclass(frozen=True)
class Levels:
    """How a tensor becomes 8-bit integers: q = round(x / scale) + zero_point, clipped."""

    scale: float
    zero_point: int
    unsigned: bool

    @property
    def steps(self) -> tuple[int, int]:
        """The least and the greatest integer."""
        return (0, 255) if self.unsigned else (-LEVELS, LEVELS)

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest value that is not clipped."""
        low, high = self.steps
        return (low - self.zero_point) * self.scale, (high - self.zero_point) * self.scale

    def round_trip(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """The values after quantisation and dequantisation."""
        low, high = self.steps
        steps = np.rint(values / self.scale)
        np.clip(steps, low - self.zero_point, high - self.zero_point, out=steps)
        return steps * self.scale


def signed_levels(threshold: float) -> Levels:
    """int8 for [-threshold, threshold], the only form that TensorRT takes."""
    return Levels(float(half_scale(threshold)), 0, unsigned=False)


def unsigned_levels(low: float, high: float) -> Levels:
    """uint8 for [low, high], which holds zero; zero stays exact."""
    scale = float(np.float32((high - low) / 255)) or 1.0
    return Levels(scale, round(-low / scale), unsigned=True)


def half_scale(threshold: NDArray[np.float64] | float) -> NDArray[np.float32]:
    """threshold / 127 among the FP16 numbers, so that an FP16 copy of the graph is exact.

    A zero threshold gives 1, since everything there is zero at any scale; a scale beyond
    FP16 stays as it is, for the conversion to FP16 to refuse.
    """
    scale = np.asarray(threshold, np.float64) / LEVELS
    with np.errstate(over="ignore"):
        rounded = np.maximum(scale.astype(np.float16), np.finfo(np.float16).smallest_subnormal)
    rounded = np.where(np.isfinite(rounded), rounded, scale)
    return np.where(scale > 0, rounded, 1).astype(np.float32)
