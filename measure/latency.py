"""Latency of several files, taken alternately so that a drifting machine is fair to all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import cmt
from cmt.errors import MachineError
from cmt.measure.disturbance import Usage, disturbed
from cmt.measure.power import sampled
from cmt.measure.timing import FEWEST_ROUNDS, Timing, interval, round_ratios
from cmt.targets.base import Batch
from cmt.targets.settings import Settings

ROUNDS = 9
"""The fewest; `alternate` says when there are more."""
MOST_ROUNDS = 3 * ROUNDS
NARROW = 0.03
"""An interval of this share of a ratio is narrow enough."""
WARM_UP_SECONDS = 0.5
SPINS = "3000"
"""Of torch's threads while they wait for each other. With GNU OpenMP's own 300,000, and more so
with a tenth of it, two threads beside two busy loops keep the CPU from each other: 37 ms become 150
to 3,000. So few cost a quiet machine 1 % (CMT-Ti, AMD EPYC, 2 CPUs); to wait without any, 28 %."""


class Worker:
    """The parent's side of `cmt.measure.worker`; `kill` must follow whatever happens.

    Args:
        batch: the input of every run. It is sent, not saved: a run that is killed leaves no file.
        module: what the process runs, in its place something that speaks the same.
    """

    def __init__(
        self,
        runtime: str,
        path: Path,
        batch: Batch,
        threads: int,
        settings: Settings | None,
        module: str = "cmt.measure.worker",
    ) -> None:
        command = [sys.executable, "-m", module, runtime, str(path)]
        self._name = path.name
        self._batch = batch
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `kill`
        self._process = subprocess.Popen(
            [*command, str(threads), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            # Python looks for modules in the current folder first, and the user's may hold
            # a cmt.py of their own.
            cwd=Path(cmt.__file__).parents[1],
            env={"GOMP_SPINCOUNT": SPINS, **os.environ},
        )
        self.timing = Timing(0.0, 0.0)

    def load(self) -> None:
        """Send the batch; wait for the file to be loaded and run once."""
        content = np.ascontiguousarray(self._batch).data
        header = {"dtype": str(self._batch.dtype), "shape": self._batch.shape}
        self._send(json.dumps({**header, "bytes": content.nbytes}).encode() + b"\n")
        self._send(content)
        loaded = self._receive()
        self.timing = Timing(loaded["load"], loaded["first"], compiled=loaded.get("compiled"))

    def _send(self, content: bytes | memoryview) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the answer that does not come says more
            self._process.stdin.write(content)
            self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith(b"{"):  # runtimes print notes of their own
                return json.loads(line)
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        last = (lines or ["no message"])[-1]
        raise MachineError(f"timing {self._name} stopped with status {status} ({last})")

    def burst(self, seconds: float) -> list[float]:
        """Latencies in ms of back-to-back runs for this long."""
        self._send(f"{seconds}\n".encode())
        answer = self._receive()
        self.timing.gpu_ms += answer.get("gpu_ms", [])
        self.timing.usages.append(Usage(**answer["usage"]))
        return answer["ms"]

    def finish(self) -> None:
        """Stop the process in good order and take its peak memory."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.timing.peak_rss_mb = self._receive()["peak_rss_mb"]
        self._process.wait()

    def kill(self) -> None:
        """Stop the process whatever it does, and close its pipes."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(OSError):
                if stream is not None:
                    stream.close()


def measure_alternately(
    files: dict[str, tuple[str, Path]],
    batch: Batch,
    threads: int,
    seconds: float,
    advance: Callable[[int], None],
    settings: Mapping[str, Settings] | None = None,
    other_batches: Mapping[str, Batch] | None = None,
    most_rounds: int = MOST_ROUNDS,
) -> dict[str, Timing]:
    """Time every file in alternating bursts (A B C C B A A B C ...).

    For about `seconds`, in `ROUNDS`, and longer until `alternate` has enough.

    Args:
        files: name -> (runtime, file), runtimes as in `targets.registry.LOADERS`.
        batch: the input of every run, as the files take it.
        threads: of each runtime; only one process runs at a time.
        advance: called with the rounds that are over, of `most_rounds`.
        settings: by name, for the files that do not take their runtime's default settings.
        other_batches: by name, for the files that take another input.
        most_rounds: how many there may be.
    """
    batches, own = other_batches or {}, settings or {}
    start = {
        name: partial(Worker, runtime, path, batches.get(name, batch), threads, own.get(name))
        for name, (runtime, path) in files.items()
    }
    return alternate(start, seconds, advance, most_rounds)


def alternate(
    start: Mapping[str, Callable[[], Worker]],
    seconds: float,
    advance: Callable[[int], None],
    most_rounds: int = MOST_ROUNDS,
) -> dict[str, Timing]:
    """`measure_alternately` for workers that may differ in anything.

    After `ROUNDS` it ends as soon as enough rounds were undisturbed and each file's ratio to the
    first one is `NARROW`, at the latest after `most_rounds`.

    Args:
        start: by name, starts the worker; each is loaded before the next one starts.
    """
    with ExitStack() as stack:
        workers: list[Worker] = []
        for make in start.values():
            worker = make()
            workers.append(worker)
            stack.callback(worker.kill)
            worker.load()
            worker.burst(WARM_UP_SECONDS)
            worker.timing.gpu_ms.clear()
            worker.timing.usages.clear()
        timings = [worker.timing for worker in workers]
        while not enough(timings, most_rounds):
            _round(workers, seconds / ROUNDS)
            advance(1)
        advance(most_rounds - len(timings[0].rounds))
        for worker in workers:
            worker.finish()
        return dict(zip(start, timings, strict=True))


def _round(workers: Sequence[Worker], seconds: float) -> None:
    timings = [worker.timing for worker in workers]
    # Every other time backwards, so that nobody always follows the same neighbour.
    for worker in workers if len(timings[0].rounds) % 2 == 0 else reversed(workers):
        with sampled(worker.timing.power_mw):
            worker.timing.rounds.append(worker.burst(seconds))
    noted = disturbed([timing.usages[-1] for timing in timings])
    for timing in timings:
        timing.disturbed.append(noted)


def enough(timings: Sequence[Timing], most_rounds: int = MOST_ROUNDS) -> bool:
    """Whether an alternation of these files may end, see `alternate`."""
    first, done = timings[0], len(timings[0].rounds)
    if done < ROUNDS or done >= most_rounds:
        return done >= most_rounds
    return len(first.quiet) >= FEWEST_ROUNDS and all(
        high <= (1 + NARROW) * low
        for low, high in (interval(round_ratios(timing, first)) for timing in timings[1:])
    )
