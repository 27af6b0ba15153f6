"""Latency of several files, taken alternately so that a drifting machine is fair to all."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import cmt
from cmt.errors import MachineError
from cmt.measure.power import sampled
from cmt.measure.statistics import summarise_latency
from cmt.targets.base import Batch, Compiled
from cmt.targets.settings import Settings, as_compiled

ROUNDS = 8
WARM_UP_SECONDS = 0.5


@dataclass
class Timing:
    """What one file's worker measured; milliseconds and MB.

    Attributes:
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

    def settings(self, asked: Settings) -> dict[str, Any]:
        """The report's `settings` and, where the runtime tells, `otherwise` and `layers`.

        Args:
            asked: of `settings_of_run`.
        """
        if self.compiled is None:
            return {"settings": dict(asked)}
        settings, otherwise = as_compiled(asked, self.compiled["settings"])
        layers = {"int8_in_file": self.compiled["int8_in_file"], "run": self.compiled["layers"]}
        return {"settings": settings, "layers": layers, "otherwise": otherwise}

    @property
    def latency(self) -> dict[str, Any]:
        """The report's `latency_ms` over all rounds."""
        return summarise_latency([ms for one in self.rounds for ms in one], self.first, self.load)


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
) -> dict[str, Timing]:
    """Time every file for about `seconds`, in alternating bursts (A B C C B A A B C ...).

    Args:
        files: name -> (runtime, file), runtimes as in `targets.registry.LOADERS`.
        batch: the input of every run, as the files take it.
        threads: of each runtime; only one process runs at a time.
        advance: called with 1 after each of the `ROUNDS`.
        settings: by name, for the files that do not take their runtime's default settings.
        other_batches: by name, for the files that take another input.
    """
    batches, own = other_batches or {}, settings or {}
    start = {
        name: partial(Worker, runtime, path, batches.get(name, batch), threads, own.get(name))
        for name, (runtime, path) in files.items()
    }
    return alternate(start, seconds, advance)


def alternate(
    start: Mapping[str, Callable[[], Worker]], seconds: float, advance: Callable[[int], None]
) -> dict[str, Timing]:
    """`measure_alternately` for workers that may differ in anything.

    Args:
        start: by name, starts the worker; each is loaded before the next one starts.
    """
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, make in start.items():
            workers[name] = make()
            stack.callback(workers[name].kill)
            workers[name].load()
            workers[name].burst(WARM_UP_SECONDS)
            workers[name].timing.gpu_ms.clear()
        order = list(workers.values())
        for _ in range(ROUNDS):
            for worker in order:
                with sampled(worker.timing.power_mw):
                    worker.timing.rounds.append(worker.burst(seconds / ROUNDS))
            order.reverse()  # so that nobody always follows the same neighbour
            advance(1)
        for worker in workers.values():
            worker.finish()
        return {name: worker.timing for name, worker in workers.items()}
