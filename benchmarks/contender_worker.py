"""The processes of `benchmarks/cpu.py`: `measure.worker` and two more ways to run a network.

    python -m benchmarks.contender_worker RUNTIME FILE THREADS SETTINGS.json

The protocol is that of `measure.worker`. In throughput mode a burst answers with one number: the
time from the first start to the last end over the inferences in between.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cmt.measure.worker as worker
from cmt.measure.disturbance import between, usage
from cmt.targets.base import Array, Runner
from cmt.targets.reference import torch_network
from cmt.targets.registry import LOADERS
from cmt.targets.settings import Settings

COMPILED = "torch.compile"
THROUGHPUT = "openvino throughput"
LEAST_TURNS = 3
"""How often each request runs in the shortest burst."""


def load_compiled(
    path: Path, threads: int, settings: Settings | None = None, batch: int | None = None
) -> Runner:
    """The reference network through `torch.compile` with its defaults."""
    import torch

    torch.set_num_threads(threads)
    model = torch.compile(torch_network(path))

    def run(batch: Array) -> list[Array]:
        with torch.no_grad():
            return [model(torch.from_numpy(batch)).numpy()]

    return run


def mean_interval(queue: Any, batch: Array, seconds: float) -> float:
    """Milliseconds per inference with all requests of an `AsyncInferQueue` in flight."""

    def start(count: int) -> None:
        for _ in range(count):
            queue.start_async([batch], share_inputs=True)

    start(len(queue))  # not counted: another process had the caches before
    queue.wait_all()
    inferences = 0
    begin = time.perf_counter()
    while inferences < LEAST_TURNS * len(queue) or time.perf_counter() < begin + seconds:
        start(1)
        inferences += 1
    queue.wait_all()
    return (time.perf_counter() - begin) * 1000 / inferences


def serve_throughput(path: str, threads: str, settings: str) -> None:
    """Serve bursts of as many requests at once as OpenVINO holds best."""
    import openvino as ov

    batch = worker.read_batch()
    properties = {
        **(json.loads(settings) or {}),
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_NUM_THREADS": int(threads),
    }
    begin = time.perf_counter()
    queue = ov.AsyncInferQueue(ov.Core().compile_model(path, "CPU", properties))
    loaded = time.perf_counter()
    queue.start_async([batch])
    queue.wait_all()
    first = time.perf_counter()
    _say({"load": (loaded - begin) * 1000, "first": (first - loaded) * 1000})
    for line in sys.stdin.buffer:
        before = usage()
        ms = [mean_interval(queue, batch, float(line))]
        _say({"ms": ms, "usage": asdict(between(before, usage()))})
    _say({"peak_rss_mb": worker.peak_rss_mb()})


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def main(runtime: str, *arguments: str) -> None:
    """Serve bursts until standard input ends."""
    if runtime == THROUGHPUT:
        serve_throughput(*arguments)
    else:
        LOADERS[COMPILED] = load_compiled
        worker.main(runtime, *arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
