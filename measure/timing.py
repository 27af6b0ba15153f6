"""What was measured of a file's speed, and how many times as fast it is as another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import comb
from typing import Any

import numpy as np

from cmt.measure.disturbance import Usage, summary
from cmt.measure.statistics import summarise_latency
from cmt.report.rows import Latency, Ran, Speedup
from cmt.report.rows import Timing as Quality
from cmt.targets.base import Compiled
from cmt.targets.settings import Settings, as_compiled

FEWEST_ROUNDS = 6
"""With fewer no interval of the median covers it in 95 % of cases."""
RESTART = 0.02
"""Two processes that run one file differ by up to so much on a quiet machine, whatever their
rounds say (CMT-Ti's INT8 over FP32, AMD EPYC). Intervals are so much wider on either side."""


@dataclass
class Timing:
    """What one file's worker measured; milliseconds and MB.

    Attributes:
        rounds: the runs of each burst.
        usages: of each burst.
        disturbed: whether the round of that burst was, for any of the files in it.
        gpu_ms: of engines, what the GPU took for each run without the copies to it and back.
        power_mw: what each meter said was drawn meanwhile, as `measure.power.sampled` adds it.
        compiled: what the runtime made of the file; None where it does not tell.
    """

    load: float
    first: float
    rounds: list[list[float]] = field(default_factory=list)
    peak_rss_mb: float | None = None
    gpu_ms: list[float] = field(default_factory=list)
    power_mw: dict[str, list[int]] = field(default_factory=dict)
    compiled: Compiled | None = None
    usages: list[Usage] = field(default_factory=list)
    disturbed: list[bool] = field(default_factory=list)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Timing:
        """What `dataclasses.asdict` made of one."""
        return cls(**{**content, "usages": [Usage(**usage) for usage in content["usages"]]})

    @property
    def quiet(self) -> list[int]:
        """The rounds that were not disturbed."""
        known = len(self.disturbed)
        return [i for i in range(len(self.rounds)) if i >= known or not self.disturbed[i]]

    @property
    def busy(self) -> str | None:
        """Why no speed-up is to be believed; None where enough rounds were undisturbed."""
        if len(self.quiet) >= min(FEWEST_ROUNDS, len(self.rounds)):
            return None
        return (
            f"this machine was busy: in {sum(self.disturbed)} of {len(self.rounds)} rounds files "
            "were kept from CPUs; time them again when it is quiet"
        )

    @property
    def counted(self) -> Sequence[int]:
        """The rounds that figures are of: the undisturbed ones; all of a busy machine's."""
        return self.quiet if self.busy is None else range(len(self.rounds))

    def settings(self, asked: Settings) -> Ran:
        """The report's `settings` and, where the runtime tells, `otherwise` and `layers`.

        Args:
            asked: of `settings_of_run`.
        """
        if self.compiled is None:
            return {"settings": asked}
        settings, otherwise = as_compiled(asked, self.compiled["settings"])
        layers, count = self.compiled["layers"], self.compiled["int8_in_file"]
        return {
            "settings": settings,
            "layers": {"int8_in_file": count, "run": layers},
            "otherwise": otherwise,
        }

    @property
    def latency(self) -> Latency:
        """The report's `latency_ms` over the undisturbed rounds; over all of a busy machine's."""
        times = [ms for i in self.counted for ms in self.rounds[i]]
        return summarise_latency(times, self.first, self.load)

    @property
    def quality(self) -> Quality:
        """The report's `timing`."""
        return {
            "rounds": len(self.rounds),
            "disturbed": sum(self.disturbed),
            "busy": self.busy is not None,
            **summary(self.usages),
        }


def speedup(ours: Timing, theirs: Timing) -> Speedup | None:
    """How many times as fast as `theirs` `ours` is; None where the machine was busy.

    Both are of one alternation. The interval covers the median of the rounds in at least 95 % of
    cases, see `interval`, and another start of the process.
    """
    if ours.busy is not None:
        return None
    if ours is theirs:
        return {"ratio": 1.0, "ci95": [1.0, 1.0], "rounds": len(ours.quiet)}
    ratios = round_ratios(ours, theirs)
    low, high = interval(ratios)
    return {
        "ratio": float(np.median(ratios)),
        "ci95": [low * (1 - RESTART), high * (1 + RESTART)],
        "rounds": len(ratios),
    }


def round_ratios(ours: Timing, theirs: Timing) -> list[float]:
    """Median time of `theirs` over that of `ours`, for each counted round of one alternation."""
    return [float(np.median(theirs.rounds[i]) / np.median(ours.rounds[i])) for i in ours.counted]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """At least 95 % interval of the median, whatever the distribution; of few values, all of them.

    The k-th value from below and from above, with the largest k for which a fair coin shows fewer
    than k heads in 2.5 % of cases at most (the sign test's; W. J. Conover, "Practical Nonparametric
    Statistics", 3.2). The bootstrap's percentiles would cover 82 % with nine values.
    """
    ordered, count = sorted(values), len(values)
    k = tail = 0
    while tail + comb(count, k) <= 0.025 * 2**count:
        tail += comb(count, k)
        k += 1
    k = max(k, 1)
    return ordered[k - 1], ordered[-k]
