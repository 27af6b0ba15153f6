"""How fast CMT is on this CPU in every way that a user might run it, in one alternating run.

    python benchmarks/cpu.py --work FOLDER --out results.json
    python benchmarks/cpu.py --markdown results.json

Files are timed in groups that fit the caches, in alternating bursts. Each group holds the plain
OpenVINO FP32 graph, and ratios are those of one group's bursts in the same round. Files are kept
in the work folder and results are written group by group, so that the same command goes on where
it was stopped.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from benchmarks.contender_worker import THROUGHPUT
from benchmarks.contenders import PEAK, Contender, Files, describe, fingerprint
from benchmarks.other_networks import RIVAL_GROUPS
from benchmarks.result_tables import make_tables, to_markdown, to_rich
from cmt.measure.latency import MOST_ROUNDS, Worker, alternate
from cmt.measure.progress import ProgressBars
from cmt.measure.statistics import paired_ratio
from cmt.targets import machine
from cmt.targets.settings import STREAMS
from cmt.variants import VARIANTS

MODES = ("latency", "throughput")
"""One request at a time, or as many as OpenVINO's throughput hint asks for."""
MEASUREMENTS = (
    "ms",  # the median: of single runs, or of each round's time per inference (throughput)
    "rounds_ms",
    "images_per_second",
    "speedup",
    "share_of_int8_peak",
    "load_ms",
    "peak_rss_mb",
)
"""Fields of a contender's row; null where it was not measured, for its `reason`."""

_TIMERS = (
    "targets",
    "measure/worker.py",
    "measure/latency.py",
    "benchmarks/contender_worker.py",
)
"""What loads, runs and times the files."""

Row = dict[str, Any]
Make = Callable[[], list[Contender]]


def groups(files: Files, variant: str, batch: int, others: bool) -> Iterator[tuple[str, str, Make]]:
    """(kind, mode, contenders) of every group of a variant, its yardstick first."""
    yield "runtimes", "latency", partial(files.runtimes, variant, batch)
    for mode in MODES:
        yield "graphs", mode, partial(files.graphs, variant, batch)
    if others:
        for mode, names in product(MODES, RIVAL_GROUPS[variant]):
            yield (
                f"networks: {', '.join(names)}",
                mode,
                partial(files.rivals, variant, batch, names),
            )


def measure_group(
    contenders: Sequence[Contender],
    mode: str,
    threads: int,
    seconds: float,
    advance: Callable[[int], None],
) -> Row:
    """Time a group and the INT8 peak alternately; ratios are to the first contender."""
    measured = [contender for contender in contenders if contender.reason is None]
    start = {contender.name: partial(_start, contender, mode, threads) for contender in measured}
    timings = alternate(start, seconds, advance)
    # A round of the throughput mode is one number, whose median it is.
    rounds = {
        name: [float(np.median(one)) for one in timing.rounds] for name, timing in timings.items()
    }
    rates = {
        contender.name: [contender.macs * 1000 / ms for ms in rounds[contender.name]]
        for contender in measured
    }
    rows = []
    for contender in contenders:
        row = {**describe(contender), **dict.fromkeys(MEASUREMENTS)}
        if contender.reason is None:
            own, timing = rounds[contender.name], timings[contender.name]
            ms = timing.latency["p50"]
            figures = (
                ms,
                own,
                contender.shape[0] * 1000 / ms,
                paired_ratio(own, rounds[contenders[0].name]),
                float(np.median(np.divide(rates[contender.name], rates[PEAK]))),
                timing.load,
                timing.peak_rss_mb,
            )
            row |= zip(MEASUREMENTS, figures, strict=True)
        rows.append(row)
    peak = next(contender for contender in contenders if contender.name == PEAK)
    return {
        "int8_peak": {
            "what": f"{PEAK}, {' x '.join(map(str, peak.shape))}",
            "macs_per_second": float(np.median(rates[PEAK])),
            "rounds_ms": rounds[PEAK],
        },
        "contenders": [row for row in rows if row["name"] != PEAK],
    }


def _start(contender: Contender, mode: str, threads: int) -> Worker:
    batch = np.random.default_rng(0).standard_normal(contender.shape, np.float32)
    runtime, settings = contender.runtime, contender.settings
    if mode == "throughput":
        runtime = THROUGHPUT
        # The hint chooses the streams.
        settings = {name: v for name, v in (settings or {}).items() if name != STREAMS}
    return Worker(runtime, contender.path, batch, threads, settings, "benchmarks.contender_worker")


def run(
    variants: Sequence[str],
    batches: Sequence[int],
    seconds: float,
    others: bool,
    work: Path,
    out: Path,
    fresh: bool,
) -> Row:
    """Measure every group that `out` does not hold yet; returns the results."""
    files = Files(work.absolute())
    results: Row = {
        "environment": machine.describe(seed=0),
        "threads": machine.usable_cores(),
    }
    done = {}
    if out.exists() and not fresh:
        done = {group["title"]: group for group in json.loads(out.read_text())["groups"]}
    with ProgressBars(True) as progress:
        for variant, batch in product(variants, batches):
            for kind, mode, make in groups(files, variant, batch, others):
                title = f"{variant}, batch {batch}, {mode}, {kind}"
                with progress.step(f"files: {title}"):
                    contenders = make()
                run_with = [seconds, results["threads"], results["environment"]["cpu"]]
                key = _key(contenders, run_with)
                if title in done and done[title]["key"] == key:
                    continue
                with progress.task(title, MOST_ROUNDS) as advance:
                    figures = measure_group(contenders, mode, results["threads"], seconds, advance)
                done[title] = {
                    "title": title,
                    "variant": variant,
                    "batch": batch,
                    "mode": mode,
                    "kind": kind.partition(":")[0],
                    "measured": now(),
                    "seconds": seconds,
                    "key": key,
                    **figures,
                }
                write_results({**results, "date": now(), "groups": list(done.values())}, out)
    return {**results, "date": now(), "groups": list(done.values())}


def _key(contenders: Sequence[Contender], run_with: Sequence[Any]) -> str:
    """Changes with whatever would make earlier results those of something else."""
    content = [[describe(contender), contender.key] for contender in contenders]
    content.append([fingerprint(*_TIMERS)])
    return hashlib.sha256(json.dumps([content, run_with]).encode()).hexdigest()


def now() -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def write_results(results: Row, out: Path) -> None:
    """In one step, so that an interruption leaves the earlier file."""
    temporary = out.with_name(f".{out.name}")
    temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    temporary.replace(out)


def _variants(_: click.Context, __: click.Parameter, value: str) -> list[str]:
    names = value.split(",")
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise click.BadParameter(f"unknown variant '{unknown[0]}': of {', '.join(VARIANTS)}")
    return names


def _batches(_: click.Context, __: click.Parameter, value: str) -> list[int]:
    if not all(part.isdigit() and int(part) for part in value.split(",")):
        raise click.BadParameter("give whole numbers from 1 on, such as 1,8")
    return [int(part) for part in value.split(",")]


FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.option("--variants", default=",".join(VARIANTS), callback=_variants, help="CMT variants.")
@click.option("--batch", "batches", default="1,8", callback=_batches, help="Images per inference.")
@click.option(
    "--seconds",
    default=5.0,
    type=click.FloatRange(min=0, min_open=True),
    help="Spent on timing each file.",
)
@click.option("--others/--no-others", default=True, help="Other networks beside CMT.")
@click.option("--work", default="benchmark_files", type=click.Path(path_type=Path), help="Cache.")
@click.option("--out", default="results.json", type=FILE, help="Results, group by group.")
@click.option("--fresh", is_flag=True, help="Drop the results that --out has.")
@click.option("--markdown", type=FILE, help="Only print the tables of these results as Markdown.")
def main(markdown: Path | None, **arguments: Any) -> None:
    """Time CMT and what one might run in its place on this CPU, alternately."""
    if markdown is not None:
        results = json.loads(markdown.read_text(encoding="utf-8"))
        click.echo("\n\n".join(to_markdown(table) for table in make_tables(results)))
        return
    console = Console(width=100, highlight=False)
    for table in make_tables(run(**arguments)):
        console.print(to_rich(table))


if __name__ == "__main__":
    main()
