"""What INT8 and FP16 cost CMT in accuracy: other quantisers and ours on the same images.

    python benchmarks/accuracy.py --work FOLDER --out accuracy.json
    python benchmarks/accuracy.py --name imagenette --weights W --calib-data TRAIN --val-data VAL
    python benchmarks/accuracy.py --markdown accuracy.json
    python benchmarks/accuracy.py --check accuracy.json

Without options, CMT-Ti with the demo weights on all 10,000 bundled images. Every quantiser is given
the same float graph (ours also the network) and the same calibration images; every file is loaded
again and run on the same validation images. Files and answers are kept in the work folder, and
results are written file by file, so that the same command goes on where it was stopped.
`--seconds` adds latencies, taken alternately once all files are there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console

from benchmarks.contenders import fingerprint
from benchmarks.cpu import now, write_results
from benchmarks.quantisers import (
    OutOfTimeError,
    make_modelopt_environment,
    modelopt_int8,
    nncf_controlled_int8,
    nncf_int8,
    onnxruntime_int8,
)
from benchmarks.tables import NOT_MEASURED, Table, to_markdown, to_rich
from cmt.bundle.reader import open_bundle
from cmt.calib_data.prepared import PreparedImages
from cmt.calib_data.sources import ImageSource
from cmt.errors import InputError
from cmt.export.images import Selection
from cmt.export.inputs import resolve
from cmt.export.onnx_graph import export_onnx, simplify_onnx
from cmt.export.options import ExportOptions
from cmt.export.pipeline import export
from cmt.export.stages import Stages
from cmt.measure.latency import ROUNDS, measure_alternately
from cmt.measure.progress import ProgressBars
from cmt.measure.statistics import compare, paired_ratio
from cmt.report.figures import drop_text, milliseconds, p_value, percent, share
from cmt.targets.base import SIMULATED, Array, run_all
from cmt.targets.machine import describe as describe_machine
from cmt.targets.machine import package_versions
from cmt.targets.registry import LOADERS, TARGETS
from cmt.targets.settings import Settings
from cmt.variants import VARIANTS

MODELOPT = "0.47.0"
"""Version of NVIDIA ModelOpt."""
CONTROLLED_DROP = 0.003
"""What NNCF's accuracy control is asked to keep: a share, 0.3 points."""
REFERENCE_BATCH = 16
REVIEWED = Path(__file__).with_name("reviewed.json")
PLAIN = "OpenVINO FP32"
OURS = "ours, "
PEERS = "files/"
"""What the stages of other quantisers' files begin with."""
BESIDE = {
    "openvino": f"{OURS}OpenVINO INT8",
    "onnxruntime": f"{OURS}OpenVINO INT8",
    SIMULATED: f"{OURS}TensorRT INT8",
}
"""Which of ours one would run in place of a peer's file, by the peer's runtime."""
TITLES = {"openvino": "OpenVINO", "tensorrt": "TensorRT", "onnxruntime": "ONNX Runtime"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """A file to judge.

    Attributes:
        name: unique in the set.
        runtime: one of `measure.runners.LOADERS`.
        stage: that made the file.
        settings: OpenVINO's properties.
        version: of what made it, where that is not among the environment's packages.
        reason: why there is none; None where there is.
    """

    name: str
    runtime: str
    stage: str
    path: Path
    settings: Settings | None = None
    version: str | None = None
    reason: str | None = None

    @property
    def timed(self) -> bool:
        """It runs here on the runtime that it is meant for."""
        return self.reason is None and self.runtime != SIMULATED


class ImageSet:
    """A network with its calibration and validation images, and every file made of them."""

    def __init__(self, options: ExportOptions, work: Path, progress: ProgressBars) -> None:
        self.options, self.progress = options, progress
        self.inputs = resolve(options, needs_calibration=True)
        if self.inputs.not_labelled is not None:
            raise InputError(f"no accuracy: {self.inputs.not_labelled}")
        common = {
            "versions": package_versions(),
            "weights": self.inputs.weights_sha256,
            "variant": options.variant,
        }
        self.stages = Stages(work, common)
        self.threads = options.thread_count
        inputs = self.inputs
        assert inputs.calibration is not None
        self.validation = self._prepare(
            "validation", inputs.validation, options.val_count, inputs.label_map
        )
        self.calibration = self._prepare("calibration", inputs.calibration, options.calib_count)

    def _prepare(
        self,
        name: str,
        source: ImageSource,
        count: int | None,
        label_map: dict[int, int] | None = None,
    ) -> PreparedImages:
        chosen = Selection(source, self.inputs.preprocessing, self.options.seed, count, label_map)
        return chosen.prepare(name, self.stages, self.progress)

    def _held_out(self) -> list[tuple[Array, int]]:
        """As many labelled calibration images as calibrate, others than those."""
        source, label_map = self.inputs.calibration, self.inputs.label_map
        assert source is not None
        if source.class_names != self.inputs.validation.class_names:
            raise InputError("NNCF's accuracy control needs calibration images in class folders")
        images = self._prepare("labelled", source, 2 * self.options.calib_count, label_map)
        assert images.labels is not None
        calibrating = set(self.calibration.keys)
        places = np.flatnonzero([key not in calibrating for key in images.keys])
        labels = images.labels[places].tolist()
        return list(zip(images.batches(1, places), labels, strict=True))

    # Files

    @cached_property
    def ours(self) -> Path:
        """The bundle that `cmt-export` makes of the same weights and calibration images."""

        def make(folder: Path) -> None:
            export(
                replace(
                    self.options,
                    precisions=("fp16", "int8"),
                    val_count=64,  # judged here, on all
                    bench_seconds=0.1,
                    max_drop=100.0,
                    out=folder / "bundle",
                )
            )

        inputs = {
            "sources": fingerprint("cmt", "export", "quantize", "measure", "calib_data"),
            "targets": self.options.targets,
        }
        with self.progress.step("exporting ours"):
            bundle = self.stages.run("ours", inputs, make, ["images/calibration"]) / "bundle"
        used = open_bundle(bundle).manifest["calibration"]["sha256"]
        assert used == self.calibration.sha256, "ours was calibrated on other images"
        return bundle

    @cached_property
    def _graph(self) -> Path:
        """The network as torch writes it, simplified: what every other quantiser starts from."""

        def make(folder: Path) -> None:
            export_onnx(self.inputs.model, 1, folder / "exported.onnx")
            simplify_onnx(folder / "exported.onnx", folder / "plain.onnx")

        inputs = {"sources": fingerprint("cmt/network.py", "export/onnx_graph.py")}
        return self.stages.run("plain", inputs, make).absolute() / "plain.onnx"

    def contenders(self, modelopt: Path | None, control_seconds: float) -> Iterator[Contender]:
        """Every file of the table, made when it is asked for.

        Args:
            modelopt: a Python with ModelOpt; None makes an environment in the work folder.
            control_seconds: how long NNCF's accuracy control may take.
        """
        batches = list(self.calibration.batches(1))

        def control(path: Path) -> None:
            nncf_controlled_int8(
                self._graph,
                batches,
                self._held_out(),
                path,
                max_drop=CONTROLLED_DROP,
                seconds=control_seconds,
            )

        def nvidia(path: Path) -> None:
            python = modelopt or make_modelopt_environment(
                self.stages.workspace.parent.absolute() / "modelopt", MODELOPT
            )
            modelopt_int8(python, self._graph, batches, path)

        recipe = partial(nncf_int8, self._graph, batches)
        peers: dict[str, tuple[str, Callable[[Path], None], Row]] = {
            "NNCF default": ("openvino", partial(recipe, transformer=False), {}),
            "NNCF TRANSFORMER": ("openvino", partial(recipe, transformer=True), {}),
            "ONNX Runtime default": (
                "onnxruntime",
                partial(onnxruntime_int8, self._graph, batches),
                {},
            ),
            "NVIDIA ModelOpt default": (SIMULATED, nvidia, {"version": MODELOPT}),
            "NNCF accuracy control": (
                "openvino",
                control,
                {"seconds": control_seconds, "label_map": self.inputs.label_map},
            ),
        }
        yield Contender(PLAIN, "openvino", "plain", self._graph)
        yield from self._own()
        for name, peer in peers.items():
            yield self._peer(name, *peer)

    def _own(self) -> Iterator[Contender]:
        bundle = open_bundle(self.ours)
        for entry in bundle.artefacts:
            precision, title = entry["precision"], TITLES.get(entry["target"])
            if title is None or precision == "fp32":
                continue
            name = f"{OURS}{title} {precision.upper()}"
            if TARGETS[entry["target"]].simulated:
                path = self.ours / "model" / f"cmt_{self.options.variant}.{precision}.onnx"
                yield Contender(name, SIMULATED, "ours", path.absolute())
            else:
                path = bundle.file(entry).absolute()
                runtime = TARGETS[entry["target"]].runtime
                yield Contender(name, runtime, "ours", path, entry["settings"] or None)

    def _peer(
        self,
        name: str,
        runtime: str,
        quantise: Callable[[Path], None],
        inputs: Row,
    ) -> Contender:
        """Another quantiser's file; what it does not manage is a reason in the table.

        A failure is kept like a file: remove its folder to try again.
        """
        file = "int8.xml" if runtime == "openvino" else "int8.onnx"
        stage = f"{PEERS}{name}"

        def make(folder: Path) -> None:
            try:
                quantise(folder.absolute() / file)
            except (OutOfTimeError, RuntimeError) as error:
                (folder / "reason.txt").write_text(str(error))

        with self.progress.step(f"{self.options.variant}: {name}"):
            after = ["plain", "images/calibration"]
            sources = {"sources": fingerprint("benchmarks/quantisers.py")}
            folder = self.stages.run(stage, {**sources, **inputs}, make, after)
        reason = folder / "reason.txt"
        return Contender(
            name,
            runtime,
            stage,
            folder.absolute() / file,
            version=inputs.get("version"),
            reason=reason.read_text() if reason.exists() else None,
        )

    # Answers

    def reference(self) -> Array:
        """Logits of the torch network on the validation images."""
        model = self.inputs.model

        def run(batch: Array) -> list[Array]:
            with torch.inference_mode():
                return [model(torch.from_numpy(batch)).numpy()]

        torch.set_num_threads(self.threads)
        return self._answers("torch", lambda: run, REFERENCE_BATCH, ())

    def answers(self, contender: Contender) -> Array:
        """Logits of a file, loaded again, on the validation images."""
        load = partial(LOADERS[contender.runtime], contender.path, self.threads, contender.settings)
        return self._answers(contender.name, load, 1, (contender.stage,))

    def _answers(
        self, name: str, load: Callable[[], Any], batch: int, after: tuple[str, ...]
    ) -> Array:
        def make(folder: Path) -> None:
            total = len(self.validation)
            with self.progress.task(f"running {name}", total) as advance:
                batches = self.validation.batches(batch)
                np.save(folder / "logits.npy", run_all(load(), batches, total, advance)[0])

        folder = self.stages.run(f"answers/{name}", {}, make, ("images/validation", *after))
        return np.load(folder / "logits.npy")

    def times(self, contenders: list[Contender], seconds: float) -> dict[str, Row]:
        """p50 and the ratio to the first contender's, in the same rounds, of those that run."""
        timed = [contender for contender in contenders if contender.timed]

        def make(folder: Path) -> None:
            with self.progress.task("timing", ROUNDS) as advance:
                timings = measure_alternately(
                    {c.name: (c.runtime, c.path) for c in timed},
                    self.validation.batch(1),
                    self.threads,
                    seconds,
                    advance,
                    {c.name: c.settings for c in timed if c.settings is not None},
                )
            rounds = {
                name: [float(np.median(one)) for one in timing.rounds]
                for name, timing in timings.items()
            }
            times = {
                name: {
                    "p50": timings[name].latency["p50"],
                    "speedup": paired_ratio(own, rounds[timed[0].name]),
                }
                for name, own in rounds.items()
            }
            (folder / "times.json").write_text(json.dumps(times))

        inputs = {"seconds": seconds, "names": [c.name for c in timed], "threads": self.threads}
        after = ["images/validation", *dict.fromkeys(c.stage for c in timed)]
        return json.loads(
            (self.stages.run("times", inputs, make, after) / "times.json").read_text()
        )


def run(
    name: str,
    options: ExportOptions,
    work: Path,
    out: Path | None,
    *,
    modelopt: Path | None,
    control_seconds: float,
    seconds: float,
) -> Row:
    """Judge every file of a set; returns the results, those of earlier sets in `out` included.

    Args:
        name: of the set, unique in `out`.
        out: written after every file; None keeps the results to the caller.
    """
    results: Row = {"sets": {}}
    if out is not None and out.exists():
        results = json.loads(out.read_text(encoding="utf-8"))
    with ProgressBars(out is not None) as progress:
        images = ImageSet(options, work.absolute() / name, progress)
        reference, labels = images.reference(), images.validation.labels
        assert labels is not None
        rows: list[Row] = [{"name": "torch FP32", **judge(reference, reference, labels)}]
        result = {
            "variant": options.variant,
            "validation": len(labels),
            "validation_sha256": images.validation.sha256,
            "calibration": len(images.calibration),
            "calibration_sha256": images.calibration.sha256,
            "threads": images.threads,
            "environment": describe_machine(options.seed),
            "rows": rows,
        }
        results["sets"][name] = result
        contenders = []
        ours: dict[str, Array] = {}
        for contender in images.contenders(modelopt, control_seconds):
            contenders.append(contender)
            row: Row = {"name": contender.name, "runtime": contender.runtime, "behind_ours": None}
            if contender.version is not None:
                row["version"] = contender.version
            if contender.reason is None:
                logits = images.answers(contender)
                row |= judge(logits, reference, labels)
                row["behind_ours"] = behind_ours(contender, logits, ours, labels)
                if contender.name in BESIDE.values():
                    ours[contender.name] = logits
            else:
                row |= {"accuracy": None, "logit_error": None, "reason": contender.reason}
            rows.append(row)
            result["measured"] = now()
            if out is not None:
                write_results(results, out)
        if seconds:
            times = images.times(contenders, seconds)
            for row in rows:
                row["latency"] = times.get(row["name"])
            if out is not None:
                write_results(results, out)
    return results


def reviewed() -> Row:
    """The figures that later versions are held to, as `regressions` takes them."""
    return json.loads(REVIEWED.read_text(encoding="utf-8"))


def regressions(results: Row, reference: Row) -> list[str]:
    """A line for each file that is worse than the reviewed figures allow, or is missing.

    Args:
        reference: set -> file -> figure of a row (`logit_error`, `drop_pp`) -> [reviewed value,
            how much more is accepted]. Sets that were not measured are left out.
    """
    lines = []
    for name in reference.keys() & results["sets"].keys():
        rows = {row["name"]: row for row in results["sets"][name]["rows"]}
        for file, figures in reference[name].items():
            row = rows.get(file)
            if row is None or row["accuracy"] is None:
                lines.append(f"{name}: {file} is missing")
                continue
            measured = {"logit_error": row["logit_error"], "drop_pp": row["accuracy"]["drop_pp"]}
            lines += [
                f"{name}: {file} has {figure} {measured[figure]:.4g}, reviewed {value:.4g}"
                for figure, (value, more) in figures.items()
                if measured[figure] > value + more
            ]
    return sorted(lines)


def judge(logits: Array, reference: Array, labels: Any) -> Row:
    """The accuracy beside torch's, and the root mean square error relative to torch's logits."""
    error = np.sqrt(np.square(logits - reference).mean() / np.square(reference).mean())
    accuracy = asdict(compare(logits, reference, labels))
    return {"accuracy": accuracy, "logit_error": float(error)}


def behind_ours(peer: Contender, logits: Array, ours: dict[str, Array], labels: Any) -> Row | None:
    """A peer's accuracy beside that of our INT8 file for its kind of machine, image by image.

    Args:
        ours: logits by the file's name.

    Returns None for what is no peer's file, and where ours was not judged.
    """
    beside = BESIDE[peer.runtime]
    if not peer.stage.startswith(PEERS) or beside not in ours:
        return None
    return asdict(compare(logits, ours[beside], labels))


def make_table(name: str, results: Row) -> Table:
    """One set as text."""
    result = results["sets"][name]
    machine, packages = result["environment"], result["environment"]["packages"]
    versions = [f"{p} {packages[p]}" for p in ("openvino", "nncf", "onnxruntime", "torch")]
    versions += [f"ModelOpt {row['version']}" for row in result["rows"] if "version" in row]
    reasons = [f"{row['name']}: {row['reason']}." for row in result["rows"] if row.get("reason")]
    return Table(
        f"CMT-{result['variant'].capitalize()}, {name}",
        (
            "",
            "top-1, %",
            "drop, points [95 %]",
            "McNemar p",
            "behind ours, points [95 %]",
            "same answer",
            "error of the logits",
            "p50, ms",
            "speed",
        ),
        [_cells(row) for row in result["rows"]],
        " ".join(
            [
                f"{result['validation']:,} validation and {result['calibration']} calibration "
                "images. Behind ours: top-1 of our INT8 file for the same kind of machine minus "
                f"this one's, image by image. Speed: as a multiple of {PLAIN}'s in the same "
                "rounds. *: run by ONNX Runtime in place of the GPU it is meant for.",
                *reasons,
                f"{machine['cpu']} ({', '.join(machine['cpu_flags'])}), {result['threads']} "
                f"threads, {', '.join(versions)}, {result['measured'][:10]}.",
            ]
        ),
    )


def _cells(row: Row) -> tuple[str, ...]:
    accuracy, latency = row["accuracy"], row.get("latency")
    name = row["name"] + (" *" if row.get("runtime") == SIMULATED else "")
    if accuracy is None:
        return (name, *[NOT_MEASURED] * 8)
    speed, behind = latency and latency["speedup"], row.get("behind_ours")
    return (
        name,
        percent(accuracy["top1"]),
        drop_text(accuracy) if "runtime" in row else "baseline",
        p_value(accuracy["mcnemar_p"]),
        drop_text(behind) if behind else NOT_MEASURED,
        share(accuracy["agreement"]),
        percent(100 * row["logit_error"]) + " %",
        milliseconds(latency["p50"]) if latency else NOT_MEASURED,
        f"{speed['median']:.2f} [{speed['q1']:.2f}, {speed['q3']:.2f}]" if speed else NOT_MEASURED,
    )


FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.option("--name", default="bundled", help="What the results call this set of images.")
@click.option("--variant", default="ti", type=click.Choice(list(VARIANTS)), help="CMT variant.")
@click.option("--weights", help="Checkpoint file.  [default: demo for ti]")
@click.option("--calib-data", type=FOLDER, help="Calibration images.  [default: bundled]")
@click.option("--calib-count", default=512, help="How many of them.")
@click.option("--val-data", type=FOLDER, help="Validation images, class/name.jpg.")
@click.option("--val-count", type=int, help="How many.  [default: all]")
@click.option(
    "--modelopt", type=FILE, help="A Python with ModelOpt.  [default: made in the work folder]"
)
@click.option(
    "--control-seconds", default=1800.0, help="How long NNCF's accuracy control may take."
)
@click.option("--seconds", default=0.0, help="Spent on timing each file; 0 leaves times out.")
@click.option("--threads", type=int, help="CPU threads of every runtime.  [default: all]")
@click.option("--work", default="benchmark_files", type=FOLDER, help="Cache.")
@click.option("--out", default="accuracy.json", type=FILE, help="Results, file by file.")
@click.option("--markdown", type=FILE, help="Only print the tables of these results as Markdown.")
@click.option("--check", type=FILE, help="Only compare these results with the reviewed ones.")
def main(
    *,
    markdown: Path | None,
    check: Path | None,
    name: str,
    work: Path,
    out: Path,
    modelopt: Path | None,
    control_seconds: float,
    seconds: float,
    **options: Any,
) -> None:
    """Judge other quantisers and ours on the same images."""
    if markdown is not None:
        results = json.loads(markdown.read_text(encoding="utf-8"))
        tables = [to_markdown(make_table(name, results)) for name in results["sets"]]
        click.echo("\n\n".join(tables))
        return
    if check is not None:
        worse = regressions(json.loads(check.read_text(encoding="utf-8")), reviewed())
        click.echo("\n".join(worse) or "as good as reviewed")
        sys.exit(1 if worse else 0)
    targets = tuple(t for t in ("openvino", "tensorrt") if not TARGETS[t].missing())
    results = run(
        name,
        ExportOptions(targets=targets, **options),
        work,
        out,
        modelopt=modelopt,
        control_seconds=control_seconds,
        seconds=seconds,
    )
    Console(width=160, highlight=False).print(to_rich(make_table(name, results)))


if __name__ == "__main__":
    main()
