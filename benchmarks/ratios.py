"""Speed ratios of networks that were timed in the same rounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How many times as fast as `theirs` `ours` is: median and quartiles over the rounds.

    Args:
        ours, theirs: milliseconds, one number for each round.
    """
    low, median, high = np.percentile(np.divide(theirs, ours), (25, 50, 75))
    return {"median": float(median), "q1": float(low), "q3": float(high)}
