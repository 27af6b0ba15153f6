"""A process that holds one runtime and one file, and times it in bursts on command.

    python -m cmt.measure.worker RUNTIME FILE THREADS SETTINGS.json

One process per file keeps thread pools and memory apart. Protocol, one JSON line each way:
the worker reads {"dtype", "shape", "bytes"} and that many bytes, the input of every run, and
answers {"first", "load"} in ms and "compiled", what the runtime made of the file
(`targets.base.Compiled`) or null where it does not tell; for every line with a number of seconds it
runs for that long and answers {"ms": [...], "gpu_ms": [...], "usage": {...}}: the second is empty
but for engines, the third a `measure.disturbance.Usage`; at the end of input it writes
{"peak_rss_mb"} and stops.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cmt.measure.disturbance import between, usage
from cmt.targets.base import Batch, Runner
from cmt.targets.registry import LOADERS
from cmt.targets.settings import callers

UNCOUNTED = 2


def peak_rss_mb() -> float | None:
    """Peak resident memory of this process in MB (10^6 bytes); None where the system does not tell.

    VmHWM and not getrusage, whose figure includes the parent's peak before the exec.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024 / 1e6 if "VmHWM" in fields else None


def burst(
    runner: Runner,
    batch: Batch,
    seconds: float,
    callers: int = 1,
    gpu_ms: list[float] | None = None,
) -> list[float]:
    """Run back to back for `seconds`, at least three times; latencies in ms.

    `callers` threads do so at once. The first runs are not counted: another process had the
    caches before. `gpu_ms` takes each run's, of a runner that has it.
    """

    def call() -> list[float]:
        for _ in range(UNCOUNTED):
            runner(batch)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < end:
            begin = time.perf_counter()
            runner(batch)
            times.append((time.perf_counter() - begin) * 1000)
            if gpu_ms is not None and hasattr(runner, "gpu_ms"):
                gpu_ms.append(runner.gpu_ms)
        return times

    if callers == 1:
        return call()
    futures = [_pool(callers).submit(call) for _ in range(callers)]
    return [ms for future in futures for ms in future.result()]


@cache
def _pool(callers: int) -> ThreadPoolExecutor:
    """Threads that stay: with one that ends, the system forgets how long it waited for CPUs."""
    return ThreadPoolExecutor(callers)


def read_batch() -> Batch:
    """The input of every run, as `measure.latency` sends it first."""
    header = json.loads(sys.stdin.buffer.readline())
    content = sys.stdin.buffer.read(header["bytes"])
    # A copy: runtimes treat memory that may not be written to differently.
    return np.frombuffer(content, header["dtype"]).reshape(header["shape"]).copy()


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def main(runtime: str, path: str, threads: str, settings: str) -> None:
    """Serve bursts until standard input ends; one caller for each of OpenVINO's streams."""
    batch = read_batch()
    properties = json.loads(settings)
    begin = time.perf_counter()
    runner = LOADERS[runtime](Path(path), int(threads), properties, len(batch))
    loaded = time.perf_counter()
    runner(batch)
    first = time.perf_counter()
    made = runner.compiled() if hasattr(runner, "compiled") else None
    _say({"load": (loaded - begin) * 1000, "first": (first - loaded) * 1000, "compiled": made})
    for line in sys.stdin.buffer:
        gpu_ms: list[float] = []
        before = usage()
        ms = burst(runner, batch, float(line), callers(properties or {}), gpu_ms)
        _say({"ms": ms, "gpu_ms": gpu_ms, "usage": asdict(between(before, usage()))})
    _say({"peak_rss_mb": peak_rss_mb()})


if __name__ == "__main__":
    main(*sys.argv[1:])
