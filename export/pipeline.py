"""The run: torch -> ONNX -> simplified -> per target, every arrow checked, then measured.

Each step is a stage on disk (`export.stages`); whatever is checked or measured is the stage's
saved file, loaded again.
"""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calib_data.prepared import PreparedImages, open_prepared, prepare
from calib_data.sources import ImageSource
from cmt.checkpoints import to_public_layout
from cmt.errors import GateError, InputError
from cmt.network import count_macs
from export import bundle as bundles
from export.inputs import Inputs, resolve
from export.onnx_graph import INPUT_NAME, OPSET, export_onnx, output_names, simplify_onnx
from export.options import ExportOptions
from export.progress import ProgressBars
from export.stages import Stages
from export.targets import BuildRequest, Target, get_target
from measure import environment
from measure.latency import ROUNDS, Timing, measure_alternately
from measure.parity import TOLERANCES, compare_outputs, require
from measure.report import write_report
from measure.runners import LOADERS, SIMULATED, run_all
from measure.statistics import compare

PARITY_IMAGES = 32

Outputs = list[np.ndarray]


@dataclass(frozen=True)
class Bundle:
    """A finished export: its folder, its report, and the gates it failed."""

    path: Path
    report: dict[str, Any]

    @property
    def failures(self) -> list[str]:
        """One line for each accuracy gate that failed."""
        return self.report["gates"]["failures"]


@dataclass(frozen=True)
class Graph:
    """One ONNX file on the way to the targets.

    Attributes:
        source: the graph that it is made from; None for the torch network.
        precision: which tolerance the comparison with torch has.
        runtime: what runs it for that comparison.
        file: its name in the bundle's `model` folder; None if it stays behind.
        calibrated: its content depends on the calibration images.
    """

    source: str | None
    precision: str
    runtime: str
    file: str | None
    calibrated: bool = False


GRAPHS = {
    "onnx": Graph(None, "fp32", "onnxruntime", None),
    "simplified": Graph("onnx", "fp32", "onnxruntime", "{name}.onnx"),
    "half": Graph("simplified", "fp16", SIMULATED, "{name}.fp16.onnx"),
    "qdq": Graph("simplified", "int8", "onnxruntime", None, calibrated=True),
    "qdq-half": Graph("qdq", "int8", SIMULATED, "{name}.int8.onnx"),
}


@dataclass(frozen=True)
class Candidate:
    """One file to build, check and measure: a target at a precision."""

    target: Target
    precision: str

    @property
    def name(self) -> str:
        return f"{self.target.name}/{self.precision}"


def export(options: ExportOptions, show_progress: bool = False) -> Bundle:
    """Run an export and return its bundle, complete at `options.bundle`.

    Raises:
        InputError: options or input files will not do; nothing is left behind.
        GateError: an arrow of the pipeline failed its parity check; nothing is left behind.
            An accuracy gate that fails is no exception: the bundle is there to look at, and
            `Bundle.failures` says so.
    """
    bundles.check_destination(options.bundle, options.force)
    candidates = [
        Candidate(target, precision)
        for target in (get_target(name) for name in dict.fromkeys(options.targets))
        for precision in target.precisions(options.precisions)
    ]
    inputs = resolve(options, any(c.precision == "int8" for c in candidates))
    workspace = bundles.open_workspace(options.bundle, options.resume)
    try:
        with ProgressBars(show_progress) as progress:
            report = Run(options, candidates, inputs, workspace, progress).finish()
    except (InputError, GateError):
        shutil.rmtree(workspace, ignore_errors=True)
        raise
    shutil.rmtree(workspace, ignore_errors=True)
    return Bundle(options.bundle, report)


class Run:
    """One export in progress."""

    def __init__(
        self,
        options: ExportOptions,
        candidates: list[Candidate],
        inputs: Inputs,
        workspace: Path,
        progress: ProgressBars,
    ) -> None:
        self.options, self.candidates, self.inputs = options, candidates, inputs
        self.progress = progress
        self.workspace = workspace
        common = {"versions": environment.package_versions(), "seed": options.seed}
        self.stages = Stages(workspace, common)
        self.parity: list[dict[str, Any]] = []
        self.file_stem = f"cmt_{options.variant}"

    def finish(self) -> dict[str, Any]:
        """All stages in order, then the bundle; returns the report."""
        self.validation = self._prepare(
            "validation", self.inputs.validation, self.inputs.validation_count
        )
        self.calibration = None
        if self.inputs.calibration is not None:
            self.calibration = self._prepare(
                "calibration", self.inputs.calibration, self.options.calib_count
            )
        reference = self._reference()
        self.reference = self._outputs("torch", "torch", reference, "reference")
        built = {candidate.name: self._build(candidate) for candidate in self.candidates}
        outputs = {c.name: self._candidate_outputs(c, built[c.name]) for c in self.candidates}
        timings = self._time(reference, built)
        return self._assemble(built, outputs, timings)

    # Inputs

    def _prepare(self, name: str, source: ImageSource, count: int | None) -> PreparedImages:
        total = min(len(source), count or len(source))
        label_map = self.inputs.label_map if name == "validation" else None

        def make(folder: Path) -> None:
            with self.progress.task(f"preparing {name} images", total) as advance:
                prepare(
                    source,
                    self.inputs.preprocessing,
                    folder,
                    count=count,
                    seed=self.options.seed,
                    label_map=label_map,
                    advance=advance,
                )

        keys = [source.description, len(source), count, _listing(source)]
        inputs = {"source": keys, "preprocessing": asdict(self.inputs.preprocessing)}
        folder = self.stages.run(f"images/{name}", {**inputs, "labels": label_map}, make)
        images = open_prepared(folder, self.inputs.preprocessing)
        if images.skipped:
            self.inputs.warnings.append(
                f"{len(images.skipped)} {name} image(s) could not be decoded and were left out, "
                f"first {images.skipped[0]}"
            )
        return images

    def _reference(self) -> Path:
        """The torch network as files, which every process can load."""
        import torch

        model = self.inputs.model

        def make(folder: Path) -> None:
            torch.save(to_public_layout(model), folder / "weights.pt")
            config = {
                "variant": model.variant.name,
                "weights": "weights.pt",
                "img_size": model.img_size,
                "features": model.head is None,
            }
            (folder / "network.json").write_text(json.dumps(config))

        inputs = {
            "weights": self.inputs.weights_sha256 or "random",
            "variant": model.variant.name,
            "size": model.img_size,
            "output": self.options.output,
        }
        return self.stages.run("reference", inputs, make) / "network.json"

    # Graphs and files

    def _graph(self, name: str) -> Path:
        """The ONNX graph `name`, made from its source and compared with torch."""
        graph = GRAPHS[name]
        source = None if graph.source is None else self._graph(graph.source)
        after = ("reference",) if graph.source is None else (f"graph/{graph.source}",)
        if graph.calibrated:
            after = (*after, "images/calibration")

        def make(folder: Path) -> None:
            path = folder / "graph.onnx"
            with self.progress.step(f"writing ONNX graph '{name}'"):
                self._make_graph(name, source, path)
            row = self._parity(name, graph, path)
            (folder / "parity.json").write_text(json.dumps(row))

        inputs = {"batch": self.options.batch, "opset": OPSET, "threads": self.options.thread_count}
        folder = self.stages.run(f"graph/{name}", inputs, make, (*after, "torch.outputs"))
        row = json.loads((folder / "parity.json").read_text())
        if row not in self.parity:
            self.parity.append(row)
        return folder / "graph.onnx"

    def _make_graph(self, name: str, source: Path | None, path: Path) -> None:
        if source is None:
            export_onnx(self.inputs.model, self.options.batch, path)
        elif name == "simplified":
            simplify_onnx(source, path)
        else:
            import onnx

            onnx.save(self._transform(name, onnx.load(source)), path)

    def _transform(self, name: str, model: Any) -> Any:
        if name == "qdq":
            from quantize.qdq import quantize_onnx

            assert self.calibration is not None
            return quantize_onnx(model, list(self.calibration.batches(self.options.batch)))
        from export.half import to_fp16

        return to_fp16(model)

    def _parity(self, name: str, graph: Graph, path: Path) -> dict[str, Any]:
        count = min(PARITY_IMAGES, len(self.validation))
        runner = LOADERS[graph.runtime](path, self.options.thread_count)
        batches = self.validation.batches(self.options.batch, count)
        outputs = run_all(runner, batches, count, lambda _: None)
        row = compare_outputs(
            name, outputs, [r[:count] for r in self.reference], TOLERANCES[graph.precision]
        )
        require(row)
        return row

    def _build(self, candidate: Candidate) -> Path:
        """The stage folder with the candidate's file and `built.json`."""
        target, precision = candidate.target, candidate.precision
        graph = self._graph(target.graphs[precision])
        after = (f"graph/{target.graphs[precision]}",)
        calibration = self.calibration if precision == "int8" else None
        if calibration is not None:
            after = (*after, "images/calibration")

        def make(folder: Path) -> None:
            request = BuildRequest(
                graph,
                folder / f"{self.file_stem}.{precision}.{target.suffix}",
                precision,
                calibration,
                self.options.batch,
                self.options.gpu_archs,
            )
            with self.progress.step(f"building {candidate.name}"):
                info = target.build(request)
            (folder / "built.json").write_text(json.dumps(info))

        inputs = {"batch": self.options.batch, "gpu_archs": self.options.gpu_archs}
        return self.stages.run(f"build/{candidate.name}", inputs, make, after)

    # Measuring

    def _evaluated_file(self, candidate: Candidate, folder: Path) -> Path:
        if candidate.target.runs_graph:
            return self._graph(candidate.target.graphs[candidate.precision])
        return next(folder.glob(f"*.{candidate.target.suffix}"))

    def _outputs(self, name: str, runtime: str, path: Path, after: str) -> Outputs:
        """All outputs of a saved file on the validation images, computed once."""
        total = len(self.validation)
        if self.options.output == "features":
            total = min(total, PARITY_IMAGES)
        batch = self.options.batch

        def make(folder: Path) -> None:
            runner = LOADERS[runtime](path, self.options.thread_count)
            with self.progress.task(f"running {name} on {total} images", total) as advance:
                arrays = run_all(runner, self.validation.batches(batch, total), total, advance)
            np.savez(folder / "outputs.npz", *arrays)

        inputs = {"runtime": runtime, "batch": batch, "threads": self.options.thread_count}
        folder = self.stages.run(f"{name}.outputs", inputs, make, (after, "images/validation"))
        with np.load(folder / "outputs.npz") as file:
            return [file[f"arr_{i}"] for i in range(len(file.files))]

    def _candidate_outputs(self, candidate: Candidate, folder: Path) -> Outputs:
        path = self._evaluated_file(candidate, folder)
        stage = f"build/{candidate.name}"
        outputs = self._outputs(candidate.name, candidate.target.runtime, path, stage)
        if not candidate.target.runs_graph:  # else the graph's own row says it
            count = min(PARITY_IMAGES, len(self.validation))
            row = compare_outputs(
                candidate.name,
                [array[:count] for array in outputs],
                [array[:count] for array in self.reference],
                TOLERANCES[candidate.precision],
            )
            require(row)
            self.parity.append(row)
        return outputs

    def _time(self, reference: Path, built: dict[str, Path]) -> dict[str, Timing]:
        files = {"torch": ("torch", reference)}
        for candidate in self.candidates:
            if candidate.target.not_timed is None:
                path = self._evaluated_file(candidate, built[candidate.name])
                files[candidate.name] = (candidate.target.runtime, path)
        batch = next(self.validation.batches(self.options.batch))

        def make(folder: Path) -> None:
            title = f"timing {len(files)} files alternately"
            with self.progress.task(title, ROUNDS) as advance:
                timings = measure_alternately(
                    files, batch, self.options.thread_count, self.options.bench_seconds, advance
                )
            content = {name: asdict(timing) for name, timing in timings.items()}
            (folder / "timings.json").write_text(json.dumps(content))

        inputs = {"seconds": self.options.bench_seconds, "threads": self.options.thread_count}
        after = ("images/validation", "reference", *(f"build/{name}" for name in built))
        folder = self.stages.run("timing", inputs, make, after)
        content = json.loads((folder / "timings.json").read_text())
        return {name: Timing(**timing) for name, timing in content.items()}

    # Report and bundle

    def _assemble(
        self, built: dict[str, Path], outputs: dict[str, Outputs], timings: dict[str, Timing]
    ) -> dict[str, Any]:
        folder = self.workspace / "bundle"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        artefacts = self._copy_files(folder, built)
        golden = {name.replace("/", "-"): arrays for name, arrays in outputs.items()}
        bundles.write_golden(folder / "golden", np.asarray(self.validation.pixels), golden)
        report = self._report(artefacts, outputs, timings)
        write_report(report, folder)
        bundles.write_manifest(folder, self._manifest(folder, artefacts))
        bundles.place(folder, self.options.bundle)
        return report

    def _copy_files(self, folder: Path, built: dict[str, Path]) -> list[dict[str, Any]]:
        artefacts = []
        (folder / "model").mkdir()
        used = {"simplified", *(c.target.graphs[c.precision] for c in self.candidates)}
        for name, graph in GRAPHS.items():
            if name in used and graph.file is not None:
                path = folder / "model" / graph.file.format(name=self.file_stem)
                shutil.copyfile(self._graph(name), path)
                artefacts.append(
                    {
                        "target": "onnx",
                        "precision": graph.precision,
                        **bundles.describe_file(folder, path),
                        "built_with": {"torch": environment.package_versions()["torch"]},
                        "built_for": [],
                    }
                )
        for candidate in self.candidates:
            source = built[candidate.name]
            target_folder = folder / candidate.target.name
            target_folder.mkdir(exist_ok=True)
            for file in sorted(source.glob(f"{self.file_stem}.*")):
                shutil.copyfile(file, target_folder / file.name)
                artefacts.append(
                    {
                        "target": candidate.target.name,
                        "precision": candidate.precision,
                        **bundles.describe_file(folder, target_folder / file.name),
                        **json.loads((source / "built.json").read_text()),
                    }
                )
        return artefacts

    def _row(
        self,
        candidate: Candidate | None,
        outputs: Outputs,
        timings: dict[str, Timing],
        artefacts: Sequence[dict[str, Any]],
    ) -> dict[str, Any]:
        """One row of the report; None stands for the torch baseline."""
        name = "torch" if candidate is None else candidate.name
        reasons: dict[str, str] = {}
        row: dict[str, Any] = {
            "target": "torch" if candidate is None else candidate.target.name,
            "precision": "fp32" if candidate is None else candidate.precision,
            "artefact": None,
            "bytes": None,
            "measured_by": "torch" if candidate is None else candidate.target.runtime,
            "accuracy": None,
        }
        if candidate is None:
            reasons["bytes"] = "the network is held in memory, not in a file of the bundle"
        else:
            mine = [
                artefact
                for artefact in artefacts
                if (artefact["target"], artefact["precision"])
                == (candidate.target.name, candidate.precision)
            ]
            main = next(a for a in mine if a["path"].endswith(candidate.target.suffix))
            row["artefact"] = main["path"]
            row["bytes"] = sum(artefact["bytes"] for artefact in mine)
        if self.inputs.label_map is None:
            reasons["accuracy"] = self.inputs.not_labelled or ""
        else:
            accuracy = compare(outputs[0], self.reference[0], self.validation.labels)
            row["accuracy"] = asdict(accuracy)
        row |= self._speed(name, candidate, timings, reasons)
        row["settings"] = {"threads": self.options.thread_count, "batch": self.options.batch}
        return {**row, "reasons": reasons}

    def _speed(
        self,
        name: str,
        candidate: Candidate | None,
        timings: dict[str, Timing],
        reasons: dict[str, str],
    ) -> dict[str, Any]:
        speed: dict[str, Any] = dict.fromkeys(
            (
                "latency_ms",
                "throughput_ips",
                "speedup_vs_baseline",
                "speedup_vs_fp32_graph",
                "peak_rss_mb",
            )
        )
        if name not in timings:
            assert candidate is not None
            assert candidate.target.not_timed is not None
            reasons |= dict.fromkeys(speed, candidate.target.not_timed())
            return speed
        timing = timings[name]
        latency = timing.latency
        speed["latency_ms"] = latency
        speed["throughput_ips"] = self.options.batch * 1000 / latency["mean"]
        speed["speedup_vs_baseline"] = timings["torch"].latency["p50"] / latency["p50"]
        speed["peak_rss_mb"] = timing.peak_rss_mb
        if timing.peak_rss_mb is None:
            reasons["peak_rss_mb"] = "this system does not tell a process its peak memory"
        if candidate is None:
            reasons["speedup_vs_fp32_graph"] = "this is no exported graph"
        else:
            plain = timings[f"{candidate.target.name}/fp32"].latency
            speed["speedup_vs_fp32_graph"] = plain["p50"] / latency["p50"]
        return speed

    def _report(
        self,
        artefacts: Sequence[dict[str, Any]],
        outputs: dict[str, Outputs],
        timings: dict[str, Timing],
    ) -> dict[str, Any]:
        model, options = self.inputs.model, self.options
        results = [self._row(c, outputs[c.name], timings, artefacts) for c in self.candidates]
        failures = [
            f"{row['target']}/{row['precision']}: top-1 drop {row['accuracy']['drop_pp']:.2f} "
            f"points exceeds --max-drop {options.max_drop:g}"
            for row in results
            if row["accuracy"] is not None and row["accuracy"]["drop_pp"] > options.max_drop
        ]
        return {
            "schema": bundles.SCHEMA,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": options.command,
            "variant": model.variant.name,
            "family": model.family.name,
            "output": options.output,
            "img_size": list(model.img_size),
            "weights": {
                "source": self.inputs.weights_source,
                "sha256": self.inputs.weights_sha256,
                "parameters": sum(p.numel() for p in model.parameters()),
                "macs": count_macs(model, model.img_size),
            },
            "images": self._images(),
            "warnings": self.inputs.warnings,
            "gates": {
                "max_drop_pp": options.max_drop,
                "passed": not failures,
                "failures": failures,
            },
            "baseline": self._row(None, self.reference, timings, artefacts),
            "results": results,
            "parity": self.parity,
            "sensitivity": None,
            "sensitivity_reason": "this version does not measure it",
            "environment": environment.describe(options.seed),
        }

    def _images(self) -> dict[str, Any]:
        calibration = self.calibration
        return {
            "validation": len(self.validation),
            "validation_available": self.validation.available,
            "validation_skipped": len(self.validation.skipped),
            "validation_sha256": self.validation.sha256,
            "source": self.validation.description,
            "calibration": 0 if calibration is None else len(calibration),
            "calibration_skipped": 0 if calibration is None else len(calibration.skipped),
            "calibration_sha256": None if calibration is None else calibration.sha256,
            "calibration_source": None if calibration is None else calibration.description,
        }

    def _manifest(self, folder: Path, artefacts: list[dict[str, Any]]) -> dict[str, Any]:
        model, options = self.inputs.model, self.options
        golden = sorted((folder / "golden").iterdir())
        return {
            "variant": model.variant.name,
            "family": model.family.name,
            "input": {
                "name": INPUT_NAME,
                "shape": [options.batch, 3, *model.img_size],
                "dtype": "float32",
                "layout": "NCHW",
                **self.inputs.preprocessing.describe(),
            },
            "outputs": output_names(model.head is None),
            "labels": list(self.inputs.class_names),
            "artefacts": artefacts,
            "golden": [bundles.describe_file(folder, path) for path in golden],
            "calibration": {
                "images": 0 if self.calibration is None else len(self.calibration),
                "sha256": None if self.calibration is None else self.calibration.sha256,
            },
            "environment": environment.describe(options.seed),
        }


def _listing(source: ImageSource) -> str:
    """What identifies the source's content for `--resume`: every name, and the classes."""
    from calib_data.sources import list_hash

    return list_hash([source.key(i) for i in range(len(source))])
