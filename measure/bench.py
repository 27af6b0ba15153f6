"""A bundle measured on the machine it stands on, and the result put into its report."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from cmt.bundle.golden import golden_images
from cmt.bundle.reader import OpenBundle
from cmt.bundle.writer import replacing_files
from cmt.errors import InputError
from cmt.measure.latency import MOST_ROUNDS, measure_alternately
from cmt.measure.timing import Timing, speedup
from cmt.report.document import put_report, report_of
from cmt.report.rows import UNTIMED, Machine, Row
from cmt.targets.base import Task
from cmt.targets.entries import Entry
from cmt.targets.machine import NO_PEAK_RSS, describe, hardware, usable_cores
from cmt.targets.registry import TARGETS, load_settings, not_runnable
from cmt.targets.settings import CUDA_GRAPH, STREAMS, THREADS, Settings, callers, settings_of_run


@dataclass(frozen=True)
class Sweep:
    """What to measure every file with; all combinations, each an alternating run of its own.

    Attributes:
        batches: images per inference; empty takes the bundle's.
        threads: of the runtime; empty takes what a file was tuned to, else all usable CPUs.
        streams: OpenVINO's parallel streams, each with a caller of its own; empty takes the
            file's own setting.
        seconds: spent on each file and combination.
    """

    batches: Sequence[int] = ()
    threads: Sequence[int] = ()
    streams: Sequence[int] = ()
    seconds: float = 5.0


def check_machine(bundle: OpenBundle, name: str | None) -> str:
    """The name that this machine's results go under, its host name by default.

    Raises:
        InputError: the name stands for another machine's results.
    """
    name = name or platform.node() or "unnamed"
    ours = describe(seed=0)
    for entry in report_of(bundle).get("machines", []):
        theirs = entry["environment"]
        if entry["machine"] == name and hardware(theirs) != hardware(ours):
            raise InputError(
                f"the report has results of another machine called '{name}' ({theirs['cpu']}): "
                "give this one a name of its own with --machine"
            )
    if not os.access(bundle.path, os.W_OK):
        raise InputError(f"cannot write to {bundle.path}: copy the bundle to where you may")
    return name


def measure(
    bundle: OpenBundle,
    sweep: Sweep,
    machine: str,
    command: str,
    task: Task,
) -> Machine:
    """Measure every file that this machine can run; returns the report's entry of a machine.

    Args:
        task: is given the title and number of steps of each alternating run; yields the
            function that is called after each step.

    Raises:
        InputError: there is no file that this machine can run.
    """
    reasons = {a["path"]: not_runnable(a, bundle.trusted) for a in bundle.artefacts}
    if all(reasons.values()):
        raise InputError(
            f"this machine can run none of the bundle's files: {next(iter(reasons.values()))}"
        )
    batches = sweep.batches or [bundle.manifest["input"]["shape"][0]]
    rows: list[Row] = []
    for batch, threads, streams in product(
        batches, sweep.threads or [usable_cores()], sweep.streams or (None,)
    ):
        rows += _measure_point(bundle, sweep, batch, threads, streams, task)
    return {
        "machine": machine,
        "measured": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "environment": describe(seed=0),
        "results": rows,
    }


@dataclass(frozen=True)
class _Run:
    """One file at one setting, a row of the report.

    Attributes:
        artefact: its entry in the manifest.
        own: the file's own settings.
        reason: why it cannot be run like this here; None where it can.
    """

    artefact: Entry
    own: Settings
    reason: str | None


def _measure_point(
    bundle: OpenBundle,
    sweep: Sweep,
    batch: int,
    threads: int,
    streams: int | None,
    task: Task,
) -> list[Row]:
    """One alternating run of all files, a row for each; two for an engine."""
    runs = {
        f"{run.artefact['path']} {run.own.get(CUDA_GRAPH)}": run
        for artefact in bundle.artefacts
        for run in _runs(bundle, artefact, sweep, batch, streams)
    }
    ready = {name: run for name, run in runs.items() if run.reason is None}
    timings: Mapping[str, Timing] = {}
    if ready:
        images = golden_images(bundle)
        inputs = bundle.preprocessing.feed(images[np.arange(batch) % len(images)])
        names = {"batch": batch, "threads": threads, "streams": streams}
        title = ", ".join(f"{name} {value}" for name, value in names.items() if value)
        files = {
            name: (run.artefact["target"], bundle.file(run.artefact).absolute())
            for name, run in ready.items()
        }
        settings = {
            name: load_settings(run.artefact, run.own, bundle.trusted)
            for name, run in ready.items()
        }
        with task(f"timing {len(files)} files: {title}", MOST_ROUNDS) as advance:
            timings = measure_alternately(files, inputs, threads, sweep.seconds, advance, settings)
    plain = {
        (runs[name].artefact["target"], runs[name].own.get(CUDA_GRAPH)): timing
        for name, timing in timings.items()
        if runs[name].artefact["precision"] == "fp32"
    }
    return [
        _row(
            bundle,
            run.artefact,
            settings_of_run(run.own, threads, batch),
            timings.get(name),
            plain.get((run.artefact["target"], run.own.get(CUDA_GRAPH))),
            run.reason,
        )
        for name, run in runs.items()
    ]


def _runs(
    bundle: OpenBundle, artefact: Entry, sweep: Sweep, batch: int, streams: int | None
) -> list[_Run]:
    """Each way in which a file is run, or the one in which it cannot be."""
    own = _settings(artefact, streams, tuned=not sweep.threads)
    reason = _not_measured(bundle, artefact, batch, streams)
    if reason is not None:
        return [_Run(artefact, own, reason)]
    return [
        _Run(artefact, {**own, **way}, None) for way in TARGETS[artefact["target"]].ways(artefact)
    ]


def _settings(artefact: Entry, streams: int | None, tuned: bool) -> Settings:
    """The file's own settings; the tuned number of threads unless the sweep names others."""
    own = {k: v for k, v in artefact["settings"].items() if tuned or k != THREADS}
    return own if streams is None else {**own, STREAMS: streams}


def _not_measured(
    bundle: OpenBundle, artefact: Entry, batch: int, streams: int | None
) -> str | None:
    """Why a file cannot be run like this on this machine; None where it can."""
    reason = not_runnable(artefact, bundle.trusted)
    if reason is not None:
        return reason
    target = TARGETS[artefact["target"]]
    if streams is not None and not target.takes_streams:
        names = [other.name for other in TARGETS.values() if other.takes_streams]
        return f"streams are for {', '.join(names)}"
    return target.refuses_batch(artefact, bundle.manifest["input"]["shape"][0], batch)


def _row(
    bundle: OpenBundle,
    artefact: Entry,
    settings: Settings,
    timing: Timing | None,
    plain: Timing | None,
    reason: str | None,
) -> Row:
    """A row of the report; the accuracy stands in the exporting machine's.

    Args:
        plain: of the FP32 file beside it, where there is one.
    """
    reasons = {
        "accuracy": "cmt-bench measures speed; see the exporting machine's row",
        "speedup_vs_baseline": "there is no torch in this measurement",
    }
    same_file = (artefact["target"], artefact["precision"])
    row: Row = {
        "target": artefact["target"],
        "precision": artefact["precision"],
        "artefact": artefact["path"],
        "bytes": sum(
            entry["bytes"]
            for entry in bundle.manifest["artefacts"]
            if (entry["target"], entry["precision"]) == same_file
        ),
        "measured_by": None if reason else artefact["target"],
        "accuracy": None,
        **UNTIMED,
        "settings": settings,
        "reasons": reasons,
    }
    if reason is not None:
        for field in ("measured_by", "latency_ms", "throughput_ips", "speedup_vs_fp32_graph"):
            reasons[field] = reason
        reasons["peak_rss_mb"] = reason
        return row
    assert timing is not None
    latency = timing.latency
    row = {**row, **timing.settings(settings)}
    row["latency_ms"] = latency
    row["timing"] = timing.quality
    row["throughput_ips"] = callers(settings) * settings["batch"] * 1000 / latency["mean"]
    if plain is None:
        reasons["speedup_vs_fp32_graph"] = "the FP32 file was not measured beside it"
    elif timing.busy is not None:
        reasons["speedup_vs_fp32_graph"] = timing.busy
    else:
        row["speedup_vs_fp32_graph"] = speedup(timing, plain)
    row["peak_rss_mb"] = timing.peak_rss_mb
    if timing.gpu_ms:
        row["gpu_ms"] = float(np.median(timing.gpu_ms))
    if timing.power_mw:
        row["power_mw"] = {rail: float(np.mean(mw)) for rail, mw in timing.power_mw.items()}
    if timing.peak_rss_mb is None:
        reasons["peak_rss_mb"] = NO_PEAK_RSS
    return row


def save(bundle: OpenBundle, entry: Machine) -> None:
    """Put a machine's entry into the bundle's report, in place of its earlier one.

    Raises:
        InputError: see `replacing_files`.
    """
    with replacing_files(bundle) as new:
        report = report_of(bundle)
        others = [e for e in report.get("machines", []) if e["machine"] != entry["machine"]]
        put_report(bundle, {**report, "machines": [*others, entry]}, new)
