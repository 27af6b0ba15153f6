"""How long a fleet takes for ImageNet: predicted from measured times, and by a simulation.

    python -m benchmarks.fleet_scale [--simulate 64 --simulate 512 --speed 400]

The times of a file and image are those of docs/data/cpu.json, measured on 2 virtual CPUs; a worker
is such a machine. A simulation has Dask's real scheduler, real workers in this process, which sleep
in the place of running a file, `--speed` times as fast, and `cmt-fleet`'s own dispatch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cmt.fleet.crew import Crew
from cmt.fleet.dispatch import Failed, Job, dispatch
from cmt.measure.on_device import SHARD

TIMES = Path(__file__).parents[1] / "docs" / "data" / "cpu.json"
IMAGES = 50_000
HELD_OUT = 512
UNITS = 200
"""Layers and parts whose sensitivity is measured, each on all held-out images; an assumption."""
TRIES = 20
"""Of a gate's search, each on the held-out images, one after the other; an assumption."""
FILES = {
    "torch": "torch eager",
    "openvino fp32": "ours FP32",
    "openvino int8": "ours INT8",
    "onnxruntime fp32": "ONNX Runtime FP32",
    "onnxruntime int8": "ONNX Runtime INT8",
    "tensorrt fp16, simulated": "ONNX Runtime FP32",
    "tensorrt int8, simulated": "ONNX Runtime INT8",
}
"""Files of an export and whose time they take in `TIMES`. A simulation runs the graph in ONNX
Runtime: that it takes as long as a plain graph there is an assumption."""
WORKERS = (1, 8, 64, 512)
QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "1h",
}
"""What workers do beside their work, on their own machines: here all would do so on one."""


@dataclass(frozen=True)
class Plan:
    """What a run has to do, in seconds of one worker.

    Attributes:
        evaluation: of each shard of the validation images, all files.
        sensitivity: of each unit.
        gate: of the tries of each variant, a chain.
    """

    evaluation: Sequence[float]
    sensitivity: Sequence[float]
    gate: Sequence[float]

    def ideal(self, workers: int) -> float:
        """Seconds on so many workers that never wait but for the longest chain."""
        every = [*self.evaluation, *self.sensitivity, *self.gate]
        return max(sum(every) / workers, max(every))


def seconds_of_image(times: Path = TIMES) -> dict[str, dict[str, float]]:
    """variant -> file -> seconds an image, at batch 8 on two threads."""
    found: dict[str, dict[str, float]] = {}
    for group in json.loads(times.read_text())["groups"]:
        if (group["batch"], group["mode"]) == (8, "latency") and "networks" not in group["kind"]:
            ms = {row["name"]: row["ms"] for row in group["contenders"]}
            found.setdefault(group["variant"], {}).update(ms)
    return {
        variant: {file: ms[name] / 8000 for file, name in FILES.items()}
        for variant, ms in found.items()
    }


def plan(costs: dict[str, dict[str, float]]) -> Plan:
    """The whole of ImageNet, all variants and files; a shard is read once for all files of one."""
    sizes = [SHARD] * (IMAGES // SHARD) + [IMAGES % SHARD]
    return Plan(
        [size * sum(files.values()) for files in costs.values() for size in sizes],
        [HELD_OUT * files["torch"] for files in costs.values() for _ in range(UNITS)],
        [TRIES * HELD_OUT * files["openvino int8"] for files in costs.values()],
    )


def predictions(work: Plan) -> Iterator[str]:
    """A table of hours."""
    yield "| workers | evaluation | sensitivity | gate | all, never waiting |"
    yield "|---|---|---|---|---|"
    for count in WORKERS:
        parts = [Plan(work.evaluation, [0], [0]), Plan([0], work.sensitivity, [0])]
        hours = [part.ideal(count) / 3600 for part in (*parts, Plan([0], [0], work.gate), work)]
        yield f"| {count} | " + " | ".join(f"{hour:.2f} h" for hour in hours) + " |"


def rest(task: str, request: str) -> str:
    """What a simulated worker does."""
    time.sleep(json.loads(request)["seconds"])
    return "{}"


def simulate(seconds: Sequence[float], workers: int) -> dict[str, float]:
    """Have so many workers sleep for each of these times; what it took."""
    import dask
    from distributed import Client, LocalCluster

    dask.config.set(QUIET)
    jobs = [
        Job(f"{i}", "rest", {"job": i, "seconds": one}, lambda _: True)
        for i, one in enumerate(sorted(seconds, reverse=True))
    ]
    options: dict[str, Any] = {
        "dashboard_address": "127.0.0.1:0",
        "worker_dashboard_address": "127.0.0.1:0",
    }
    options |= {"protocol": "tcp://", "host": "127.0.0.1", "memory_limit": 0}
    cluster = LocalCluster(
        n_workers=workers,
        processes=False,
        threads_per_worker=1,
        resources={"TIMING": 1},
        **options,
    )
    with cluster, Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(workers)
        crew = Crew(client)
        crew.require(60)
        wall, cpu = time.perf_counter(), time.process_time()
        failed = sum(isinstance(outcome, Failed) for _, outcome in dispatch(crew, jobs, rest))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    ideal = max(sum(seconds) / workers, max(seconds))
    return {"jobs": len(jobs), "failed": failed, "ideal": ideal, "wall": wall, "cpu": cpu}


@click.command()
@click.option("--simulate", "counts", multiple=True, type=click.IntRange(1, 4096))
@click.option("--speed", default=400.0, help="Simulated seconds in a real one.")
def main(counts: tuple[int, ...], speed: float) -> None:
    """Print the predictions, and what simulations took."""
    work = plan(seconds_of_image())
    for line in predictions(work):
        click.echo(line)
    every = [one / speed for one in (*work.evaluation, *work.sensitivity, *work.gate)]
    for count in counts:
        found = simulate(every, count)
        click.echo(
            f"{count} workers: {found['jobs']:.0f} jobs, {found['failed']:.0f} failed, "
            f"{found['wall']:.1f} s, ideal {found['ideal']:.1f} s, "
            f"{found['wall'] / found['ideal']:.2f} times; CPU {found['cpu']:.1f} s, "
            f"{1000 * found['cpu'] / found['jobs']:.1f} ms a job"
        )


if __name__ == "__main__":
    main()
