"""A short measured search for the settings that a file runs fastest with here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cmt.measure.latency import measure_alternately
from cmt.measure.statistics import paired_ratio
from cmt.targets.base import Batch, Target
from cmt.targets.settings import Settings, Tried

CLEARLY = 1.02
"""A change has to be this much faster; less is within what two compilations of one file differ."""


def tune(
    target: Target,
    path: Path,
    batch: Batch,
    settings: Settings,
    threads: int,
    seconds: float,
    advance: Callable[[int], None],
) -> tuple[Settings, list[Tried]]:
    """The fastest settings for one file, and what every choice took.

    Args:
        target: with a `tune_space`.
        path: a file of it.
        batch: its input.
        settings: what it would run with untuned.
        threads: the most that may be used.
        seconds: spent on each choice, in alternating bursts.
        advance: called with 1 after each of `measure.latency.ROUNDS`.

    Returns:
        the settings, and a row for each choice, the untuned one first.
    """
    assert target.tune_space is not None
    space = target.tune_space(settings, threads)
    files = {str(i): (target.name, path) for i in range(len(space))}
    named = {str(i): choice for i, choice in enumerate(space)}
    timings = measure_alternately(files, batch, threads, seconds, advance, named)
    # By round, which the machine's drift meets alike.
    medians = {name: [float(np.median(ms)) for ms in t.rounds] for name, t in timings.items()}
    speedups = [paired_ratio(medians[name], medians["0"])["median"] for name in named]
    best = int(np.argmax(speedups))
    rows: list[Tried] = [
        {"settings": choice, "p50_ms": timings[name].latency["p50"]}
        for name, choice in named.items()
    ]
    return (space[best] if speedups[best] > CLEARLY else settings), rows
