"""A measured search for the settings that a file runs fastest with on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cmt.bundle.golden import golden_images
from cmt.bundle.reader import OpenBundle
from cmt.bundle.running import batch_of
from cmt.files import cache_folder, sha256_file, write_whole
from cmt.measure.latency import MOST_ROUNDS, ROUNDS, measure_alternately
from cmt.measure.timing import Timing, speedup
from cmt.targets.base import Batch, Target, Task
from cmt.targets.entries import Entry
from cmt.targets.machine import Environment, describe, hardware, usable_cores
from cmt.targets.registry import TARGETS, not_runnable
from cmt.targets.settings import Settings, Tried

SHORT_CHOICES = 3
SHORT_SECONDS = 0.5
"""Of each choice in the short search: three files of three choices take about ten seconds, half of
them for loading."""

Tuned = tuple[Settings, list[Tried]]
"""The settings, and a row for each choice, the untuned one first."""


@dataclass(frozen=True)
class Search:
    """A file, and what it can be run with.

    Attributes:
        target: with a `tune_space`.
        path: a file of it.
        batch: its input.
        settings: what it would run with untuned.
        threads: the most that may be used.
        machine: this one, a `targets.machine.describe`.
    """

    target: Target
    path: Path
    batch: Batch
    settings: Settings
    threads: int
    machine: Environment

    @property
    def space(self) -> list[Settings]:
        """All choices, the untuned one first."""
        assert self.target.tune_space is not None
        return list(self.target.tune_space(self.settings, self.threads))

    def short(self, task: Task) -> Tuned:
        """The nearest choices, for ten seconds; of a file, on a machine, once.

        A choice is near that changes one setting; fewer threads than half are seldom the best.
        """
        first, *others = self.space
        near = [c for c in others if sum(c[key] != first[key] for key in first) == 1]
        choices = [first, *near][:SHORT_CHOICES]
        memory = cache_folder() / "tuning" / f"{self._identity(choices)}.json"
        known = _remembered(memory, len(choices))
        if known is None:
            timings = self._time(choices, SHORT_SECONDS, ROUNDS, task)
            known = fastest(timings), [timing.latency["p50"] for timing in timings]
            if timings[0].busy is None:
                memory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_whole(memory, json.dumps(known).encode())
        return self._tuned(choices, *known)

    def thorough(self, seconds: float, task: Task) -> Tuned:
        """All choices, each for `seconds` in alternating bursts, or longer until they differ."""
        timings = self._time(self.space, seconds, MOST_ROUNDS, task)
        times = [timing.latency["p50"] for timing in timings]
        return self._tuned(self.space, fastest(timings), times)

    def _tuned(self, choices: Sequence[Settings], best: int, times: Sequence[float]) -> Tuned:
        pairs = zip(choices, times, strict=True)
        rows: list[Tried] = [{"settings": choice, "p50_ms": p50} for choice, p50 in pairs]
        return (self.settings if best == 0 else choices[best]), rows

    def _time(
        self, choices: Sequence[Settings], seconds: float, rounds: int, task: Task
    ) -> list[Timing]:
        files = {str(i): (self.target.name, self.path) for i in range(len(choices))}
        named = {str(i): choice for i, choice in enumerate(choices)}
        with task(f"finding settings for {self.path.name}", rounds) as advance:
            timings = measure_alternately(
                files, self.batch, self.threads, seconds, advance, named, most_rounds=rounds
            )
        return list(timings.values())

    def _identity(self, choices: Sequence[Settings]) -> str:
        """Of everything that decides which choice is the fastest."""
        files = sorted(self.path.parent.glob(f"{self.path.stem}.*"))
        what = [
            [sha256_file(file) for file in files],
            hardware(self.machine),
            self.machine["packages"],
            self.threads,
            np.shape(self.batch),
            [dict(choice) for choice in choices],
        ]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def tuned_for_here(bundle: OpenBundle, seconds: float, task: Task) -> OpenBundle:
    """The bundle with settings that its files run fastest with here, by a thorough search each.

    It is changed in memory alone; files that have nothing to search, or do not run, keep theirs.
    """
    images = golden_images(bundle)
    batch = bundle.preprocessing.feed(images[np.arange(batch_of(bundle)) % len(images)])

    def tuned(artefact: Entry) -> Entry:
        target = TARGETS.get(artefact["target"])
        if "golden" not in artefact or target is None or target.tune_space is None:
            return artefact
        if not_runnable(artefact, bundle.trusted) is not None:
            return artefact
        own, path = artefact["settings"], bundle.file(artefact)
        search = Search(target, path, batch, own, usable_cores(), describe(seed=0))
        return {**artefact, "settings": search.thorough(seconds, task)[0]}

    entries = [tuned(artefact) for artefact in bundle.manifest["artefacts"]]
    return replace(bundle, manifest={**bundle.manifest, "artefacts": entries})


def fastest(timings: Sequence[Timing]) -> int:
    """Which of one alternation to take: the first unless another one is faster for certain."""
    found = [speedup(timing, timings[0]) for timing in timings]
    lows = [0.0 if one is None else one["ci95"][0] for one in found]
    best = int(np.argmax(lows))
    return best if lows[best] > 1 else 0


def _remembered(memory: Path, choices: int) -> tuple[int, list[float]] | None:
    """Which choice was the fastest and what each took; None for what was not found before."""
    try:
        best, times = json.loads(memory.read_bytes())
        known = (int(best), [float(time) for time in times])
    except (OSError, ValueError, TypeError):
        return None
    return known if len(known[1]) == choices and 0 <= known[0] < choices else None
