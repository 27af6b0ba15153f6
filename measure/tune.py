"""A short measured search for the settings that an OpenVINO file runs fastest with here."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from measure.latency import measure_alternately
from measure.runners import PRECISION, THREADS, Batch, Settings
from measure.statistics import paired_ratio

CLEARLY = 1.02
"""A change has to be this much faster; less is within what two compilations of one file differ."""


def search_space(settings: Settings, threads: int) -> list[dict[str, Any]]:
    """What is tried: the settings as they are first, then fewer threads and float32.

    Threads halve down to one: two threads of one core, or more than a small network feeds, may
    cost more than they bring. Streams are not searched: for one request at a time, one is best.
    """
    counts = [threads]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    hints = dict.fromkeys([settings[PRECISION], "f32"])
    return [{**settings, THREADS: count, PRECISION: hint} for count, hint in product(counts, hints)]


def tune(
    path: Path,
    batch: Batch,
    settings: Settings,
    threads: int,
    seconds: float,
    advance: Callable[[int], None],
) -> tuple[Settings, list[dict[str, Any]]]:
    """The fastest settings for one file, and what every choice took.

    Args:
        path: an IR file.
        batch: its input.
        settings: what it would run with untuned.
        threads: the most that may be used.
        seconds: spent on each choice, in alternating bursts.
        advance: called with 1 after each of `measure.latency.ROUNDS`.

    Returns:
        the settings, and a row {"settings", "p50_ms"} for each choice, the untuned one first.
    """
    space = search_space(settings, threads)
    files = {str(i): ("openvino", path) for i in range(len(space))}
    named = {str(i): choice for i, choice in enumerate(space)}
    timings = measure_alternately(files, batch, threads, seconds, advance, named)
    # By round, which the machine's drift meets alike.
    medians = {name: [float(np.median(ms)) for ms in t.rounds] for name, t in timings.items()}
    speedups = [paired_ratio(medians[name], medians["0"])["median"] for name in named]
    best = int(np.argmax(speedups))
    rows = [
        {"settings": choice, "p50_ms": timings[name].latency["p50"]}
        for name, choice in named.items()
    ]
    return (space[best] if speedups[best] > CLEARLY else settings), rows
