"""How fast and how right CMT's engines are on this GPU, beside torch and beside the prediction.

    python -m benchmarks.gpu BUNDLE... --work FOLDER --out gpu.json
    python -m benchmarks.gpu BUNDLE... --work FOLDER --out gpu.json --rehearse

Of bundles that `cmt-export --target tensorrt --fp16 --int8` made, best with `--batch 1:8:32`: each
is measured at each of its batches with engines for that batch alone, built here from its ONNX files
or loaded from the work folder, and beside them, in the same alternating run, torch in FP16 where it
sees the GPU. Accuracy is that of 1,000 photos at the largest batch. Beside OUT a Markdown table is
written, both anew after every batch. Needs what engines need; no network, no onnx.

`--rehearse` runs all of it against the tests' simulated TensorRT, CUDA and GPU; what such a run
would say of times and accuracy is left out.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.gpu_worker import EAGER, MODES, missing_torch, runtime_of
from cmt.bundle.golden import check_artefact, golden_images
from cmt.bundle.reader import OpenBundle, open_bundle
from cmt.bundle.writer import describe_file
from cmt.calib_data.sources import ImageSource
from cmt.errors import GateError, InputError, MachineError
from cmt.files import cache_folder, sha256_file, write_whole
from cmt.measure.device_rows import Images, measure_accuracy
from cmt.measure.latency import MOST_ROUNDS, Worker, alternate
from cmt.measure.on_device import BUNDLED, File, open_images
from cmt.measure.progress import ProgressBars
from cmt.measure.timing import Timing, speedup
from cmt.targets.base import Batch, Task
from cmt.targets.entries import Built, Entry, FileEntry
from cmt.targets.machine import ask_smi, describe
from cmt.targets.registry import TARGETS, load_settings
from cmt.targets.settings import CUDA_GRAPH
from cmt.targets.tensorrt import device
from cmt.targets.tensorrt.build import BuildSettings, build_engine
from cmt.targets.tensorrt.library import needed
from cmt.targets.tensorrt.made_here import is_recorded, record
from cmt.targets.tensorrt.record import Rates

TENSORRT = "tensorrt"
WORKER, REHEARSAL = "benchmarks.gpu_worker", "benchmarks.gpu_rehearsal"
CLOCKS = "clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_throttle_reasons.active"
FIGURES = ("ms", "gpu_ms", "images_per_second", "beside_eager", "predicted", "drop", "top1")
"""Fields of a row; null where it was not measured, for its `reason`."""
NOT_MEASURED = "*not measured*"
REHEARSED = "a rehearsal: TensorRT, CUDA and the GPU are simulated"

Row = dict[str, Any]
Key = tuple[str, str]
"""What is timed, and whether as a CUDA graph."""


@dataclass(frozen=True)
class Point:
    """A bundle at one batch.

    Attributes:
        bundle: with that batch in its manifest.
        batches: that its engines are built for; None: its graphs take this batch alone.
    """

    bundle: OpenBundle
    batch: int
    batches: tuple[int, int, int] | None

    @property
    def network(self) -> str:
        """Such as `CMT-Ti 160x160`."""
        height, width = self.bundle.preprocessing.size
        return f"CMT-{self.bundle.manifest['variant'].capitalize()} {height}x{width}"


def points_of(bundle: OpenBundle) -> list[Point]:
    """A bundle at each of its batches; raises InputError where it has no engines."""
    engines = [a for a in bundle.artefacts if a["target"] == TENSORRT]
    if not engines:
        raise InputError(f"{bundle.path} has no engines: export it with --target tensorrt")
    said = bundle.manifest["input"]
    usual, batches = said["shape"][0], engines[0].get("batches")
    found = []
    for batch in dict.fromkeys(batches or [usual]):
        shape = [batch, *said["shape"][1:]]
        own = replace(bundle, manifest={**bundle.manifest, "input": {**said, "shape": shape}})
        found.append(Point(own, batch, (batch, batch, batch) if batches else None))
    return found


def engines_of(point: Point, work: Path, task: Task) -> dict[str, Entry | str]:
    """By precision, the engine for a point, checked on the golden images, or why there is none."""
    found: dict[str, Entry | str] = {}
    for graph in point.bundle.manifest["artefacts"]:
        if graph["target"] == "onnx":
            try:
                found[graph["precision"]] = _engine(point, graph, work, task)
            except (GateError, InputError) as error:
                found[graph["precision"]] = str(error)
    return found


def _engine(point: Point, graph: Entry, work: Path, task: Task) -> Entry:
    """The entry of an engine in the work folder, built unless this user has built it before."""
    here = needed()
    name = f"{graph['sha256'][:16]}-{point.batch}-{here.library}-{here.version}"
    path, said = work / f"{name}.engine", work / f"{name}.json"
    if not (said.exists() and path.exists() and is_recorded(sha256_file(path))):
        archs = [] if here.gpu is None else [here.gpu.arch]
        settings = BuildSettings(cache=cache_folder())
        source = point.bundle.file(graph)
        built = build_engine(source, path, archs, settings, task, point.batches)
        record(path)
        said.write_text(json.dumps(built), encoding="utf-8")
    info: Built = json.loads(said.read_text(encoding="utf-8"))
    described: FileEntry = {**describe_file(work, path), "path": str(path)}
    entry: Entry = {
        "target": TENSORRT,
        "precision": graph["precision"],
        "settings": {},
        "golden": golden_of(point.bundle, graph["precision"]),
        **info,
        **described,
    }
    images = point.bundle.preprocessing.feed(golden_images(point.bundle))
    check = check_artefact(point.bundle, entry, images, 1)
    if not check.passed:
        raise GateError(f"its answers to the golden images are wrong: {check.detail}")
    return entry


def golden_of(bundle: OpenBundle, precision: str) -> Any:
    """What an engine should answer; of a precision that the bundle has no engine of, another's."""
    known = {a["precision"]: a["golden"] for a in bundle.artefacts if a["target"] == TENSORRT}
    return known.get(precision, known.get("fp16", next(iter(known.values()))))


# Times


def measure(
    point: Point,
    engines: Mapping[str, Entry | str],
    without_torch: Mapping[Key, str],
    seconds: float,
    module: str,
    task: Task,
) -> list[Row]:
    """A row for every way to run a point, from one alternating run.

    Args:
        without_torch: of the torch modes that cannot be run, why.
        module: that workers are.
    """
    start = {k: make for k, make in _workers(point, engines, module) if k not in without_torch}
    clocks: list[str] = []

    def one_more(rounds: int) -> None:
        advance(rounds)
        clocks.append(ask_smi(CLOCKS) or "")

    title = f"timing {point.network}, batch {point.batch}"
    timings: Mapping[Key, Timing] = {}
    if start:
        with task(title, MOST_ROUNDS) as advance:
            names = {f"{name} {graph}": make for (name, graph), make in start.items()}
            timings = dict(zip(start, alternate(names, seconds, one_more).values(), strict=True))
    eager = timings.get((EAGER, "off"))
    missing = {p.upper(): reason for p, reason in engines.items() if isinstance(reason, str)}
    keys = {**without_torch, **{(name, "-"): reason for name, reason in missing.items()}}
    rows = [_row(point, key, timing, eager) for key, timing in timings.items()]
    rows += [_unmeasured(point, key, reason) for key, reason in keys.items()]
    return [{**row, "clocks": sorted(set(filter(None, clocks)))} for row in rows]


def _workers(
    point: Point, engines: Mapping[str, Entry | str], module: str
) -> Iterator[tuple[Key, Callable[[], Worker]]]:
    bundle = point.bundle
    images = golden_images(bundle)
    given = bundle.preprocessing.feed(images[np.arange(point.batch) % len(images)])
    for precision, entry in engines.items():
        if not isinstance(entry, str):
            path = bundle.file(entry)
            for way in TARGETS[TENSORRT].ways(entry):
                settings = load_settings(entry, way)
                worker = partial(Worker, TENSORRT, path, given, 1, settings, module)
                yield (precision.upper(), way[CUDA_GRAPH]), worker
    for key in MODES:
        yield key, partial(_torch_worker, point, key, module)


def _torch_worker(point: Point, key: Key, module: str) -> Worker:
    """Of what engines with the preprocessing inside are given, torch is given as many floats."""
    size = point.bundle.preprocessing.size
    floats: Batch = np.zeros((point.batch, 3, *size), np.float32)
    manifest = point.bundle.path / "manifest.json"
    return Worker(runtime_of(*key), manifest.absolute(), floats, 1, None, module)


def modes_without_torch(point: Point, module: str) -> dict[Key, str]:
    """Of the torch modes that cannot be run here, why."""
    reason = missing_torch()
    if reason is not None:
        return dict.fromkeys(MODES, reason)
    found = {}
    for key in MODES:
        worker = _torch_worker(point, key, module)
        try:
            worker.load()
        except MachineError as error:
            found[key] = str(error)
        finally:
            worker.kill()
    return found


def _row(point: Point, key: Key, timing: Timing, eager: Timing | None) -> Row:
    ms = timing.latency["p50"]
    return {
        **_unmeasured(point, key, None),
        "ms": ms,
        "gpu_ms": float(np.median(timing.gpu_ms)) if timing.gpu_ms else None,
        "images_per_second": 1000 * point.batch / ms,
        "beside_eager": None if eager is None else speedup(timing, eager),
        "latency_ms": timing.latency,
        "timing": timing.quality,
    }


def _unmeasured(point: Point, key: Key, reason: str | None) -> Row:
    name, graph = key
    where = {"network": point.network, "batch": point.batch, "name": name, CUDA_GRAPH: graph}
    return {**where, **dict.fromkeys(FIGURES), "reason": reason}


# Accuracy and predictions


def accuracies(
    point: Point, engines: Mapping[str, Entry | str], photos: ImageSource, count: int, task: Task
) -> dict[str, Row]:
    """By the name of a row: top-1 in percent, and the drop in points with its interval."""
    files = {
        precision.upper(): File(entry, None, {}, point.batch)
        for precision, entry in engines.items()
        if not isinstance(entry, str)
    }
    try:
        images = Images(photos, count)
        measured = measure_accuracy(point.bundle, images, list(files.values()), 1, task)
    except (GateError, InputError) as error:
        return {name: {"accuracy_reason": str(error)} for name in files}
    found: dict[str, Row] = {}
    for name, file in files.items():
        judged = measured.rows[file.name]
        accuracy = judged["accuracy"]
        if accuracy is None:
            found[name] = {"accuracy_reason": judged["reasons"]["accuracy"]}
        else:
            drop = {key: accuracy.get(key) for key in ("drop_pp", "drop_ci95")}
            found[name] = {"top1": accuracy["top1"], "drop": drop, "images": measured.images}
    return found


def predictions(point: Point, made: Mapping[str, Row], arch: str) -> dict[str, Row]:
    """By the name of a row, what the builder's record says for this GPU, where it is known.

    Args:
        made: of `gpu_folder`, by the graph's sha256, batch and GPU; what is missing is made here,
            where TensorRT-RTX is.
    """
    advice = TARGETS[TENSORRT].gpu_advice
    assert advice is not None
    found = {}
    for graph in point.bundle.manifest["artefacts"]:
        if graph["target"] == "onnx":
            own = made.get(f"{graph['sha256']} {point.batch} {arch}")
            if own is None:
                own = advice.predict(point.bundle.file(graph), [arch], point.batch)  # type: ignore[assignment]
            if own is not None:
                found[graph["precision"].upper()] = own
    return found


def correction(rows: Sequence[Row]) -> tuple[float, float] | None:
    """Microseconds a launch, and the factor of all else in the prediction, that fit the engines'
    GPU times best; None of fewer than three rows."""
    known = [(row["gpu_ms"], row["predicted"]) for row in rows if row["gpu_ms"] is not None]
    pairs = [(ms, predicted) for ms, predicted in known if predicted is not None]
    if len(pairs) < 3:
        return None
    launches = [[p["launches"], p["ms"] - 1e3 * Rates.launch * p["launches"]] for _, p in pairs]
    found, *_ = np.linalg.lstsq(np.array(launches), np.array([ms for ms, _ in pairs]), rcond=None)
    return 1e3 * float(found[0]), float(found[1])


# The whole run


def run(
    places: Sequence[Path],
    work: Path,
    out: Path,
    photos: str,
    count: int,
    made: Mapping[str, Row],
    seconds: float,
    rehearse: bool,
    task: Task,
) -> Row:
    """Measure every bundle at each of its batches; results are written after each."""
    points = [point for place in places for point in points_of(open_bundle(place))]
    module = REHEARSAL if rehearse else WORKER
    results: Row = {"rehearsal": rehearse, "rows": [], "measured": None, "environment": None}
    without_torch: dict[Key, str] | None = None
    work.mkdir(parents=True, exist_ok=True)
    for point in points:
        if rehearse:
            from benchmarks.gpu_rehearsal import simulate

            simulate(point.bundle, point.batch)
        gpu = device.find_gpu()
        if gpu is None:
            raise InputError("there is no NVIDIA GPU here: --rehearse does without")
        if without_torch is None:
            without_torch = modes_without_torch(point, module)
        engines = engines_of(point, work.absolute(), task)
        rows = measure(point, engines, without_torch, seconds, module, task)
        known = predictions(point, made, gpu.arch)
        rows = [{**row, "predicted": known.get(row["name"])} for row in rows]
        largest = max(p.batch for p in points if p.bundle.path == point.bundle.path)
        if point.batch == largest:
            source = open_images(photos, point.bundle.preprocessing.image_range)
            judged = accuracies(point, engines, source, count, task)
            rows = [{**row, **judged.get(row["name"], {})} for row in rows]
        results["rows"] += [_simulated(row) for row in rows] if rehearse else rows
        results["measured"] = datetime.datetime.now(datetime.timezone.utc).isoformat()[:19]
        results["environment"] = describe(seed=0)
        write_whole(out, (json.dumps(results, indent=1) + "\n").encode())
        write_whole(out.with_suffix(".md"), ("\n".join(markdown(results)) + "\n").encode())
    return results


def _simulated(row: Row) -> Row:
    """What is left of a row of a rehearsal."""
    kept = {key: row[key] for key in ("network", "batch", "name", CUDA_GRAPH)}
    return {**kept, **dict.fromkeys(FIGURES), "reason": row["reason"] or REHEARSED, "clocks": []}


def markdown(results: Row) -> Iterator[str]:
    """The table, what was not measured and why, and what it was measured on."""
    header = (
        "network", "batch", "", "CUDA graph", "p50, ms", "GPU, ms", "images/s",
        "times torch eager FP16", "predicted, ms", "top-1, %", "drop, points",
    )  # fmt: skip
    yield f"| {' | '.join(header)} |"
    yield "|---|---:|---|---" + "|---:" * 7 + "|"
    for row in results["rows"]:
        where = (row["network"], str(row["batch"]), row["name"], row[CUDA_GRAPH])
        yield f"| {' | '.join([*where, *_cells(row)])} |"
    yield ""
    yield from dict.fromkeys(
        f"- {row['network']}, batch {row['batch']}, {row['name']}: {reason}"
        for row in results["rows"]
        for reason in filter(None, (row["reason"], row.get("accuracy_reason")))
    )
    yield ""
    for graph in ("on", "off"):
        fit = correction([row for row in results["rows"] if row[CUDA_GRAPH] == graph])
        told = fit and f"{fit[0]:.2f} us, all else {fit[1]:.2f} times as predicted"
        assumed = f"assumed: {1e6 * Rates.launch:g} us"
        yield f"- A launch, CUDA graph {graph} ({assumed}): {told or NOT_MEASURED}"
    clocks = sorted({line for row in results["rows"] for line in row["clocks"]})
    yield ""
    yield f"Clocks ({CLOCKS}): {'; '.join(clocks) or NOT_MEASURED}."
    about = results["environment"]
    gpu = NOT_MEASURED if results["rehearsal"] else about["gpu"]
    versions = [f"{n} {v}" for n, v in about["packages"].items() if n in _PACKAGES]
    yield f"{gpu}, {about['cpu']}, {', '.join(versions)}, {results['measured'][:10]}."


_PACKAGES = ("cmt-export", "tensorrt", "tensorrt-rtx", "cuda-bindings", "torch")


def _cells(row: Row) -> Iterator[str]:
    for name in ("ms", "gpu_ms"):
        yield NOT_MEASURED if row[name] is None else f"{row[name]:.3f}"
    rate, ratio, predicted = row["images_per_second"], row["beside_eager"], row["predicted"]
    yield NOT_MEASURED if rate is None else f"{rate:.0f}"
    yield NOT_MEASURED if ratio is None else _with_interval(ratio["ratio"], ratio["ci95"])
    yield NOT_MEASURED if predicted is None else f"{predicted['ms']:.3f}"
    yield NOT_MEASURED if row["top1"] is None else f"{row['top1']:.2f}"
    drop = row["drop"] or {}
    known = drop.get("drop_pp") is not None
    yield _with_interval(drop["drop_pp"], drop["drop_ci95"]) if known else NOT_MEASURED


def _with_interval(value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.argument("bundles", nargs=-1, required=True, type=FOLDER)
@click.option("--work", default="gpu_files", type=FOLDER, help="Engines built here.")
@click.option("--out", default="gpu.json", type=FILE, help="Results; a .md is written beside it.")
@click.option("--photos", default=BUNDLED, help="For accuracy, class/name.jpg.")
@click.option("--count", default=1000, help="How many of them.")
@click.option("--predictions", "made", type=FILE, help="That the folder was prepared with.")
@click.option("--seconds", default=1.0, help="Spent on timing each file.")
@click.option("--rehearse", is_flag=True, help="Against a simulated GPU; measures nothing.")
def main(bundles: tuple[Path, ...], made: Path | None, work: Path, out: Path, **what: Any) -> None:
    """Measure engines on this machine's GPU."""
    known = {} if made is None else json.loads(made.read_text(encoding="utf-8"))
    try:
        with ProgressBars(True) as progress:
            results = run(bundles, work, out, made=known, task=progress.task, **what)
    except (InputError, GateError, MachineError) as error:
        raise click.UsageError(str(error)) from error
    click.echo("\n".join(markdown(results)))


if __name__ == "__main__":
    main()
