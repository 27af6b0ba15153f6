"""Which units go back to float so that a file keeps its accuracy: the fewest and cheapest.

Units are taken up by what their error weighs against the time that they lose in float. How many is
searched on images that set no range and play no part in validation; validation then confirms.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

LEAST_COST = 0.01
"""Relative time below which two compilations of one file differ by themselves."""


@dataclass(frozen=True)
class Lever:
    """A unit that can go back to float.

    Attributes:
        error: of the logits with this unit alone narrowed, power relative to their own.
        cost: time that the file loses with this unit alone in float, relative to its own, or the
            unit's share of the multiply-adds where no time can be taken.
        layers: how many layers of the recipe it holds.
    """

    error: float
    cost: float
    layers: int


def by_gain(levers: Mapping[str, Lever]) -> list[str]:
    """The units with the most error for their cost first."""
    return sorted(levers, key=lambda name: -levers[name].error / max(levers[name].cost, LEAST_COST))


Units = frozenset[str]


@dataclass
class Search:
    """A search in progress: `run` ends it, the other fields are what it found.

    Args:
        order: units, the first to go back to float first.
        most: how many of them may go.
        changed: share of the ranking images, 0 to 1, that a file with these units in float answers
            otherwise than the float network.
        drop: top-1 drop of that file on all validation images, points.
        limit: the largest accepted drop, points.
        seconds: after which nothing new is begun.
        tried: the share changed, by units in float, in the order of trying.
        confirmed: the drop, by units in float.
        out_of_time: it ended for that.
    """

    order: Sequence[str]
    most: int
    changed: Callable[[Units], float]
    drop: Callable[[Units], float]
    limit: float
    seconds: float
    clock: Callable[[], float] = time.monotonic
    tried: dict[Units, float] = field(default_factory=dict)
    confirmed: dict[Units, float] = field(default_factory=dict)
    out_of_time: bool = False

    def run(self) -> Units | None:
        """The units that it takes to keep the limit; None where it was not met."""
        self._end = self.clock() + self.seconds
        failed, count = 0, 1
        while self._in_time() and not self._within(count) and count < self.most:
            failed, count = count, min(2 * count, self.most)
        while self._in_time() and self._within(count) and count - failed > 1:
            middle = (failed + count) // 2
            failed, count = (failed, middle) if self._within(middle) else (middle, count)
        while count <= self.most and self._in_time():
            if self._confirm(self._first(count)) <= self.limit:
                return self._first(count)
            count = min(max(count + 1, math.ceil(1.5 * count)), max(count + 1, self.most))
        if not self.confirmed and self.tried:
            # Out of time: validation judges the best one tried, which may yet keep the limit.
            units = min(self.tried, key=lambda units: (self.tried[units], len(units)))
            if self._confirm(units) <= self.limit:
                return units
        return None

    def best(self, start: float) -> Units:
        """What validation found to drop least; `start` is the drop with no unit in float."""
        drops = {frozenset[str](): start, **self.confirmed}
        return min(drops, key=lambda units: (drops[units], len(units)))

    def _first(self, count: int) -> Units:
        return frozenset(self.order[:count])

    def _in_time(self) -> bool:
        self.out_of_time = self.out_of_time or self.clock() >= self._end
        return not self.out_of_time

    def _within(self, count: int) -> bool:
        return 100 * self._try(self._first(count)) <= self.limit

    def _try(self, units: Units) -> float:
        if units not in self.tried:
            self.tried[units] = self.changed(units)
        return self.tried[units]

    def _confirm(self, units: Units) -> float:
        self._try(units)
        self.confirmed[units] = self.drop(units)
        return self.confirmed[units]


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other one beats; less is better in both figures."""
    return [not any((a <= x and b <= y) and (a < x or b < y) for a, b in points) for x, y in points]
