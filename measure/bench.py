"""A bundle measured on the machine it stands on, and the result put into its report."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from cmt.bundle.golden import golden_images, require_answers
from cmt.bundle.reader import OpenBundle
from cmt.bundle.writer import replacing_files
from cmt.errors import InputError
from cmt.measure.device_rows import Images, Measured, measure_accuracy
from cmt.measure.latency import MOST_ROUNDS, measure_alternately
from cmt.measure.on_device import File, file_name
from cmt.measure.power import joules_per_image, no_meter
from cmt.measure.timing import Timing, speedup
from cmt.report.document import put_report, report_of
from cmt.report.rows import UNTIMED, Machine, Row
from cmt.targets.base import Task
from cmt.targets.entries import Entry
from cmt.targets.machine import (
    NO_PEAK_RSS,
    Environment,
    describe,
    hardware,
    usable_cores,
)
from cmt.targets.registry import (
    TARGETS,
    load_settings,
    not_runnable,
    on_device,
    require_device,
)
from cmt.targets.settings import (
    CUDA_GRAPH,
    SINGLE_STREAM,
    STREAMS,
    THREADS,
    Settings,
    callers,
    settings_of_run,
)


@dataclass(frozen=True)
class Sweep:
    """What to measure every file with; all combinations, each an alternating run of its own.

    Attributes:
        batches: images per inference; empty takes the bundle's.
        threads: of the runtime; empty takes what a file was tuned to, else all usable CPUs.
        streams: OpenVINO's parallel streams, each with a caller of its own; empty takes the
            file's own setting.
        devices: of the targets' `devices`; empty takes each one's first.
        scenarios: of `settings.SCENARIOS`, in place of batches and streams.
        seconds: spent on each file and combination.
    """

    batches: Sequence[int] = ()
    threads: Sequence[int] = ()
    streams: Sequence[int] = ()
    devices: Sequence[str] = ()
    scenarios: Sequence[str] = ()
    seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.scenarios and (self.batches or self.streams):
            raise InputError(
                "--scenario says the batch and streams: leave out --batch and --streams"
            )


def check_machine(bundle: OpenBundle, name: str | None) -> str:
    """The name that this machine's results go under, its host name by default.

    Raises:
        InputError: the name stands for another machine's results.
    """
    name = name or host_name()
    refuse_namesake(bundle, name, describe(seed=0), "--machine")
    require_writable(bundle)
    return name


def host_name() -> str:
    """What this machine is called."""
    return platform.node() or "unnamed"


def refuse_namesake(bundle: OpenBundle, name: str, ours: Environment, option: str) -> None:
    """Raise InputError where the report has another machine of this name; `option` gives names."""
    for entry in report_of(bundle).get("machines", []):
        theirs = entry["environment"]
        if entry["machine"] == name and hardware(theirs) != hardware(ours):
            raise InputError(
                f"the report has results of another machine called '{name}' ({theirs['cpu']}): "
                f"give this one a name of its own with {option}"
            )


def require_writable(bundle: OpenBundle) -> None:
    """Raise InputError where no results can be put into the bundle."""
    if not os.access(bundle.path, os.W_OK):
        raise InputError(f"cannot write to {bundle.path}: copy the bundle to where you may")


def measure(
    bundle: OpenBundle,
    sweep: Sweep,
    machine: str,
    command: str,
    task: Task,
    images: Images | None = None,
) -> tuple[Machine, Sequence[str]]:
    """Measure every file that this machine can run.

    Args:
        images: that accuracy is measured on as well, at the sweep's first batch; None measures
            none.
        task: is given the title and number of steps of each alternating run; yields the
            function that is called after each step.

    Returns:
        the report's entry of a machine, and lines for people on images that were not used.

    Raises:
        InputError: there is no file that this machine can run, or no such device.
        GateError: a device answers otherwise than the exporting machine.
    """
    _check_devices(bundle, sweep)
    points = list(_points(bundle, sweep))
    judged = None
    if images is not None:
        asked = asked_files(bundle, sweep)
        judged = measure_accuracy(bundle, images, asked, points[0].threads, task)
    rows = []
    for point in points:
        measured = _measure_point(bundle, sweep, point, task)
        if point.scenario is not None:
            measured = [{**row, "scenario": point.scenario} for row in measured]
        if judged is not None and point.batch == points[0].batch:
            measured = [with_accuracy(row, judged, point.device, point.batch) for row in measured]
        rows += measured
    entry: Machine = {
        "machine": machine,
        "measured": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "environment": describe(seed=0),
        "results": rows,
    }
    if judged is None:
        return entry, []
    return {**entry, "images": judged.images}, judged.remarks


def asked_files(bundle: OpenBundle, sweep: Sweep) -> list[File]:
    """The files that run here, on every device, at the batch and threads of the first point."""
    first = next(_points(bundle, sweep))
    files = []
    for device, artefact in product(_devices(sweep), bundle.artefacts):
        point = replace(first, streams=None, device=device, scenario=None)
        run = _runs(bundle, artefact, sweep, point)[0]
        if run.reason is None:
            files.append(File(artefact, device, run.own, point.batch))
    return files


def with_accuracy(row: Row, judged: Measured, device: str | None, batch: int) -> Row:
    """The row with its file's accuracy on a device, where the file could be run."""
    if row["measured_by"] is None:
        return row
    found = judged.rows[file_name(str(row["artefact"]), device, batch)]
    reasons = {name: text for name, text in row["reasons"].items() if name != "accuracy"}
    return {**row, **found, "reasons": {**reasons, **found["reasons"]}}


def _devices(sweep: Sweep) -> Sequence[str | None]:
    return sweep.devices or (None,)


def _check_devices(bundle: OpenBundle, sweep: Sweep) -> None:
    """Whether files can be run here, and answer on every device that is named as they should."""
    for device in _devices(sweep):
        require_device((artefact["target"] for artefact in bundle.artefacts), device)
        reasons = [not_runnable(a, bundle.trusted, device) for a in bundle.artefacts]
        if all(reasons):
            raise InputError(f"this machine can run none of the bundle's files: {reasons[0]}")
        if device is not None:
            require_answers(bundle, usable_cores(), device)


@dataclass(frozen=True)
class _Point:
    """One combination of a sweep; None leaves it to the file or the runtime."""

    batch: int
    threads: int
    streams: int | None
    device: str | None
    scenario: str | None = None


def _points(bundle: OpenBundle, sweep: Sweep) -> Iterator[_Point]:
    """Every combination."""
    batch = bundle.manifest["input"]["shape"][0]
    for threads, device in product(sweep.threads or [usable_cores()], _devices(sweep)):
        for scenario in sweep.scenarios:
            one_by_one = scenario == SINGLE_STREAM
            at_once = (1, 1) if one_by_one else (batch, threads)
            yield _Point(at_once[0], threads, at_once[1], device, scenario)
        if not sweep.scenarios:
            for size, streams in product(sweep.batches or [batch], sweep.streams or (None,)):
                yield _Point(size, threads, streams, device)


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
    point: _Point,
    task: Task,
) -> list[Row]:
    """One alternating run of all files, a row for each; two for an engine."""
    runs = {
        f"{run.artefact['path']} {run.own.get(CUDA_GRAPH)}": run
        for artefact in bundle.artefacts
        for run in _runs(bundle, artefact, sweep, point)
    }
    ready = {name: run for name, run in runs.items() if run.reason is None}
    timings: Mapping[str, Timing] = {}
    if ready:
        images = golden_images(bundle)
        inputs = bundle.preprocessing.feed(images[np.arange(point.batch) % len(images)])
        title = ", ".join(f"{name} {value}" for name, value in vars(point).items() if value)
        files = {
            name: (run.artefact["target"], bundle.file(run.artefact).absolute())
            for name, run in ready.items()
        }
        settings = {
            name: load_settings(run.artefact, run.own, bundle.trusted)
            for name, run in ready.items()
        }
        with task(f"timing {len(files)} files: {title}", MOST_ROUNDS) as advance:
            timings = measure_alternately(
                files, inputs, point.threads, sweep.seconds, advance, settings
            )
    plain = {
        (runs[name].artefact["target"], runs[name].own.get(CUDA_GRAPH)): timing
        for name, timing in timings.items()
        if runs[name].artefact["precision"] == "fp32"
    }
    return [
        _row(
            bundle,
            run.artefact,
            settings_of_run(run.own, point.threads, point.batch),
            timings.get(name),
            plain.get((run.artefact["target"], run.own.get(CUDA_GRAPH))),
            run.reason,
        )
        for name, run in runs.items()
    ]


def _runs(bundle: OpenBundle, artefact: Entry, sweep: Sweep, point: _Point) -> list[_Run]:
    """Each way in which a file is run, or the one in which it cannot be."""
    own = _settings(artefact, point, tuned=not sweep.threads)
    reason = _not_measured(bundle, artefact, point)
    if reason is not None:
        return [_Run(artefact, own, reason)]
    return [
        _Run(artefact, {**own, **way}, None) for way in TARGETS[artefact["target"]].ways(artefact)
    ]


def _settings(artefact: Entry, point: _Point, tuned: bool) -> Settings:
    """The file's own settings; the tuned number of threads unless the sweep names others."""
    own = {k: v for k, v in artefact["settings"].items() if tuned or k != THREADS}
    taken = point.streams is not None and TARGETS[artefact["target"]].takes_streams
    streams = {STREAMS: point.streams} if taken else {}
    return {**own, **streams, **on_device(point.device)}


def _not_measured(bundle: OpenBundle, artefact: Entry, point: _Point) -> str | None:
    """Why a file cannot be run like this on this machine; None where it can."""
    reason = not_runnable(artefact, bundle.trusted, point.device)
    if reason is not None:
        return reason
    target = TARGETS[artefact["target"]]
    if point.streams is not None and not target.takes_streams and point.scenario is None:
        names = [other.name for other in TARGETS.values() if other.takes_streams]
        return f"streams are for {', '.join(names)}"
    return target.refuses_batch(artefact, bundle.manifest["input"]["shape"][0], point.batch)


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
        "accuracy": "--val-data measures it, at the first batch; see the exporting machine's row",
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
    throughput = callers(settings) * settings["batch"] * 1000 / latency["mean"]
    row["throughput_ips"] = throughput
    if plain is None:
        reasons["speedup_vs_fp32_graph"] = "the FP32 file was not measured beside it"
    elif timing.busy is not None:
        reasons["speedup_vs_fp32_graph"] = timing.busy
    else:
        row["speedup_vs_fp32_graph"] = speedup(timing, plain)
    row["peak_rss_mb"] = timing.peak_rss_mb
    if timing.gpu_ms:
        row["gpu_ms"] = float(np.median(timing.gpu_ms))
    _add_power(row, timing, throughput)
    if timing.peak_rss_mb is None:
        reasons["peak_rss_mb"] = NO_PEAK_RSS
    return row


def _add_power(row: Row, timing: Timing, throughput: float) -> None:
    """What was drawn meanwhile, and for each image; why that is not known."""
    power = {meter: float(np.mean(mw)) for meter, mw in timing.power_mw.items()}
    row["joules_per_image"] = joules_per_image(power, throughput)
    if power:
        row["power_mw"] = power
    else:
        row["reasons"]["joules_per_image"] = no_meter()


def save(bundle: OpenBundle, entry: Machine) -> None:
    """Put a machine's entry into the bundle's report, in place of its earlier one.

    Raises:
        InputError: see `replacing_files`.
    """
    with replacing_files(bundle) as new:
        report = report_of(bundle)
        others = [e for e in report.get("machines", []) if e["machine"] != entry["machine"]]
        put_report(bundle, {**report, "machines": [*others, entry]}, new)
