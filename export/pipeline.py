"""The run: torch -> ONNX -> simplified -> per target, every arrow checked, then measured.

Each step is a stage on disk (`export.stages`); whatever is checked or measured is the stage's
saved file, loaded again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib_data.prepared import PreparedImages, spread
from calib_data.sources import Subset, choose, hold_out
from cmt.checkpoints import save_torch
from cmt.errors import GateError, InputError
from cmt.network import CMT
from cmt.rewrite import InferenceCMT, rewrite_for_inference
from export import bundle as bundles
from export.candidates import GRAPHS, Candidate, Graph, float_graph
from export.fallback import ARITHMETIC, Fallback
from export.inputs import Inputs, resolve
from export.narrowing import NONE, SUFFIX, Narrowing, suffix
from export.onnx_graph import (
    OPSET,
    embed_preprocessing,
    export_onnx,
    free_batch,
    output_names,
    simplify_onnx,
)
from export.options import ExportOptions
from export.progress import ProgressBars
from export.sbom import check_installed
from export.selection import Selection
from export.stages import Stages
from export.summary import Results, build_manifest, build_report
from export.targets import TARGETS, BuildRequest, built_settings, get_target
from export.tuning import FineTuning
from measure import environment, signature
from measure.bundle import write_manifest
from measure.latency import ROUNDS, Timing, measure_alternately
from measure.parity import compare_outputs, require, tolerance_for
from measure.report import REPORT_FILES, write_report
from measure.runners import LOADERS, PRECISION, Settings, run_all, torch_runner
from measure.tune import tune
from quantize.gate import Units

PARITY_IMAGES = 32
RANGE_IMAGES = 64
HELD_OUT = 512
"""Calibration images that set no range, at most."""
LEAST_HELD_OUT = 64
"""Of fewer images, all set ranges, and choices are made on the same ones."""
REFERENCE_BATCH = 16
"""Torch takes any batch, so its answers come faster than one by one."""

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


def export(options: ExportOptions, show_progress: bool = False) -> Bundle:
    """Run an export and return its bundle, complete at `options.bundle`.

    Raises:
        InputError: options or input files will not do; nothing is left behind.
        GateError: an arrow of the pipeline failed its parity check; there is no bundle, but
            the finished stages are kept.
            An accuracy gate that fails is no exception: the bundle is there to look at, and
            `Bundle.failures` says so.
    """
    with bundles.locked(options.bundle):
        return _export(options, show_progress)


def _export(options: ExportOptions, show_progress: bool) -> Bundle:
    bundles.recover(options.bundle)
    finished = bundles.finished_run(options.bundle) if options.resume else None
    bundles.check_destination(options.bundle, options.force or finished is not None)
    candidates, inputs = plan(options)
    with ProgressBars(show_progress) as progress:
        run = Run(options, candidates, inputs, bundles.workspace_folder(options.bundle), progress)
        if finished == run.identity:
            bundles.Workspace(options.bundle, resume=True).remove()
            written = (options.bundle / REPORT_FILES[0]).read_text(encoding="utf-8")
            return Bundle(options.bundle, json.loads(written))
        bundles.check_destination(options.bundle, options.force)
        workspace = bundles.Workspace(options.bundle, options.resume)
        try:
            report = run.finish()
        except InputError:
            workspace.discard()
            raise
        except GateError as error:
            raise GateError(f"{error}; finished stages are kept in {workspace.folder}") from error
    workspace.remove()
    return Bundle(options.bundle, report)


def plan(options: ExportOptions) -> tuple[list[Candidate], Inputs]:
    """What an export builds and what it reads; raises InputError for what will not do."""
    check_installed()  # the bundle lists what made it
    candidates = [
        Candidate(target, precision)
        for target in (get_target(name) for name in dict.fromkeys(options.targets))
        for precision in target.precisions(options.precisions)
    ]
    inputs = resolve(options, any(c.precision == "int8" for c in candidates))
    inputs.warnings += _precisions_left_out(options, candidates)
    return candidates, inputs


def _precisions_left_out(options: ExportOptions, candidates: list[Candidate]) -> list[str]:
    """A warning for each asked precision that a target lacks; InputError if all lack it."""
    warnings = []
    for precision in options.precisions:
        having = {c.target.name for c in candidates if c.precision == precision}
        lacking = [name for name in options.targets if name not in having]
        if not having:
            raise InputError(
                f"no {precision} file for {', '.join(lacking)}: leave --{precision} out"
            )
        warnings += [f"{name} has no {precision} file: left out" for name in lacking]
    return warnings


class Run:
    """One export in progress."""

    def __init__(
        self,
        options: ExportOptions,
        candidates: list[Candidate],
        inputs: Inputs,
        workspace: Path,
        progress: ProgressBars,
        held_out: int = HELD_OUT,
    ) -> None:
        self.options, self.candidates, self.inputs = options, candidates, inputs
        self.key = None if options.sign is None else signature.read_private_key(options.sign)
        self.progress = progress
        self.workspace = workspace
        self.machine = environment.describe(options.seed)
        self.common = {"machine": self.machine, "source": _source_digest()}
        self.stages = Stages(workspace, self.common)
        self.selections = _select(inputs, options, held_out)
        self.parity: dict[str, dict[str, Any]] = {}
        self.narrowing = Narrowing(self)
        self.fallback = Fallback(self, self.narrowing)
        self.file_stem = f"cmt_{options.variant}"

    @cached_property
    def identity(self) -> str:
        """Hash of all that decides the bundle: options, bytes that are read, program, machine."""
        content = {
            "options": self.options.identity,
            "weights": self.inputs.weights_sha256,
            "images": {name: chosen.key for name, chosen in self.selections.items()},
            "common": self.common,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def finish(self) -> dict[str, Any]:
        """All stages in order, then the bundle; returns the report."""
        reference = self._start()
        self.units = {c.name: self.fallback.units(c, reference) for c in self.candidates}
        self.parity.clear()  # of what the gate tried; what the files are made from comes again
        self.graph("simplified")  # in every bundle
        built = {c.name: self.build(c, self.units[c.name]) for c in self.candidates}
        outputs = {c.name: self.candidate_outputs(c, self.units[c.name]) for c in self.candidates}
        parity = self._checked_parity(self.units)
        self.narrowing.finish(self.candidates)
        self.inputs.warnings += self.narrowing.warnings() + self._warnings_of_cpu()
        timings = self._time(reference, built)
        return self._assemble(built, outputs, timings, parity)

    def rehearse(self) -> dict[str, Path]:
        """The checked graphs that files would be built from, by candidate name."""
        self._start()
        graphs = {c.name: self.file_graph(c.target.graphs[c.precision]) for c in self.candidates}
        self._checked_parity({})
        return graphs

    def _checked_parity(self, units: Mapping[str, Units]) -> list[dict[str, Any]]:
        """The rows of the arrows to the files so far, all passed.

        Args:
            units: what went back to float, by candidate name. Graphs that no file is made of any
                more for that are not held to anything, and have no row.

        Raises:
            GateError: an arrow failed; says what speaks against the calibration images too.
        """
        replaced = {
            name
            for candidate in self.candidates
            for name in self.narrowing.replaced(candidate, units.get(candidate.name, NONE))
        }
        rows = [row for name, row in self.parity.items() if name not in replaced]
        try:
            for row in rows:
                require(row)
        except GateError as error:
            raise GateError("; ".join([str(error), *self.narrowing.warnings()])) from error
        return rows

    def _warnings_of_cpu(self) -> list[str]:
        files = [
            c.name for c in self.candidates if c.precision == "int8" and c.target.not_timed is None
        ]
        if not files or not environment.cuts_int8_sums(self.machine):
            return []
        return [
            f"this CPU has no VNNI and cuts off large sums of 8-bit products: {', '.join(files)} "
            "may answer better where it will run; measure there, with cmt-bench"
        ]

    def _start(self) -> Path:
        """Prepare the images and the torch network's answers; returns the network's place."""
        import torch

        # Also where torch's answers are there already: results hang on the number of threads.
        torch.set_num_threads(self.options.thread_count)
        self.images = {name: self._prepare(name) for name in self.selections}
        self.validation = self.images["validation"]
        self.calibration = self.images.get("calibration")
        self._warn_of_shared_images()
        # The same images as the files take them.
        self.fed = replace(self.validation, preprocessing=self.inputs.preprocessing)
        self.fine_tuning = FineTuning(self, self._network) if self.options.qat else None
        reference = self._reference()
        self.reference = self.outputs("torch", "torch", reference, "reference")
        return reference

    # Inputs

    def _prepare(self, name: str) -> PreparedImages:
        images = self.selections[name].prepare(name, self.stages, self.progress)
        if images.skipped:
            self.inputs.warnings.append(
                f"{len(images.skipped)} {name} image(s) could not be decoded and were left out, "
                f"first {images.skipped[0]}"
            )
        return images

    def _warn_of_shared_images(self) -> None:
        judging = set(self.validation.digests)
        for name in [name for name in self.images if name != "validation"]:
            shared = len(judging & set(self.images[name].digests))
            if shared:
                self.inputs.warnings.append(
                    f"{shared} of the {name} images are validation images as well: the accuracy "
                    "of what is made or chosen on them is flattered"
                )

    def _reference(self) -> Path:
        """The torch network as files, which every process can load."""
        model = self.inputs.model

        def make(folder: Path) -> None:
            save_torch(model.state_dict(), folder / "weights.pt")
            config = {
                "variant": model.variant.name,
                "family": model.family.name,
                "img_size": model.img_size,
                "num_classes": model.num_classes,
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

    def plan(self, name: str) -> Graph:
        """How this run makes the graph `name`."""
        graph = GRAPHS[name]
        return graph if self.fine_tuning is not None else replace(graph, tuned=None)

    def graph(self, name: str, units: Units = NONE) -> Path:
        """The ONNX graph `name`, made from its source and compared with torch.

        Args:
            units: what stays at the precision of the source.
        """
        graph = self.plan(name)
        source = None if graph.source is None else self.graph(graph.source, units)
        after = ["torch.outputs", "reference"]
        if graph.source is not None:
            after[1:] = [f"graph/{_stage_name(graph.source, units)}"]
        if graph.fitted or graph.equalised:
            after.append("images/calibration")
        if graph.scheme is not None:
            after += self.narrowing.prepare(name, units)
        if graph.half:
            self.ranges(name)
            after.append(f"ranges/{float_graph(name)}")
        if graph.tuned is not None and self.fine_tuning is not None:
            after.append(self.fine_tuning.stage(graph))

        return self._write_graph(
            _stage_name(name, units),
            graph,
            lambda path: self._make_graph(name, source, path, units),
            self.validation,
            after,
        )

    def file_graph(self, name: str, units: Units = NONE) -> Path:
        """The graph `name` as files are built from it.

        If asked, with the preprocessing in it, and where engines take several batches, for any.
        """
        source = self.graph(name, units)
        if self.file_graph_name(name, units) == _stage_name(name, units):
            return source

        def write(path: Path) -> None:
            import onnx

            model = onnx.load(source)
            if self.options.embed_preprocess:
                model = embed_preprocessing(model, self.inputs.preprocessing)
            if self._takes_any_batch(name):
                free_batch(model)
            onnx.save(model, path)

        after = ["torch.outputs", f"graph/{_stage_name(name, units)}", "images/validation"]
        stage = self.file_graph_name(name, units)
        return self._write_graph(stage, self.plan(name), write, self.fed, after)

    def file_graph_name(self, name: str, units: Units) -> str:
        """The stage of `file_graph`."""
        pixels = "-uint8" if self.options.embed_preprocess else ""
        batch = "-any-batch" if self._takes_any_batch(name) else ""
        return _stage_name(name, units, pixels + batch)

    def _takes_any_batch(self, name: str) -> bool:
        ranged = self.options.batches is not None
        return ranged and name in TARGETS["tensorrt"].graphs.values()

    def _write_graph(
        self,
        name: str,
        graph: Graph,
        write: Callable[[Path], None],
        images: PreparedImages,
        after: list[str],
    ) -> Path:
        """A graph's stage: what `write` writes, compared with torch on `images`."""

        def make(folder: Path) -> None:
            path = folder / "graph.onnx"
            with self.progress.step(f"writing ONNX graph '{name}'"):
                write(path)
            row = self._parity(name, graph, path, images)
            (folder / "parity.json").write_text(json.dumps(row))

        inputs = {"batch": self.options.batch, "opset": OPSET, "threads": self.options.thread_count}
        folder = self.stages.run(f"graph/{name}", inputs, make, after)
        row = json.loads((folder / "parity.json").read_text())
        self.parity[name] = row
        return folder / "graph.onnx"

    def _make_graph(self, name: str, source: Path | None, path: Path, units: Units) -> None:
        graph = self.plan(name)
        if source is None:
            make = self._network
            if graph.tuned is not None and self.fine_tuning is not None:
                make = self.fine_tuning.tuned
            export_onnx(make(graph), self.options.batch, path)
        elif graph.scheme is None and not graph.half:
            simplify_onnx(source, path)
        else:
            import onnx

            onnx.save(self._transform(name, onnx.load(source), units), path)

    def _network(self, graph: Graph) -> CMT | InferenceCMT:
        if graph.equalised:
            import torch

            from quantize.equalise import equalise

            assert self.calibration is not None
            network = copy.deepcopy(self.inputs.model)
            equalise(network, map(torch.from_numpy, self.calibration.batches(REFERENCE_BATCH)))
            return network
        if not graph.rewritten:
            return self.inputs.model
        rewritten = rewrite_for_inference(self.inputs.model)
        if graph.fitted:
            import torch

            from quantize.activation import IMAGES, fit_activations

            assert self.calibration is not None
            # Not class by class: of large maps, the first images are enough.
            places = np.random.default_rng(0).permutation(spread(len(self.calibration), IMAGES))
            batches = self.calibration.batches(1, places)
            fit_activations(rewritten, map(torch.from_numpy, batches))
        return rewritten

    def _transform(self, name: str, model: Any, units: Units) -> Any:
        graph = GRAPHS[name]
        if graph.scheme is not None:
            return self.narrowing.quantise(name, model, units)
        from export.half import to_fp16

        # What a Q/DQ graph leaves float is half here.
        narrowed = graph.source is not None and GRAPHS[graph.source].narrows
        return to_fp16(model, self.ranges(name), NONE if narrowed else units)

    def ranges(self, name: str) -> dict[str, float]:
        """Largest magnitudes in the float32 graph behind the graph `name`.

        What does not fit FP16 stays float32.

        From calibration images, or without any from a few validation images, whose labels
        play no part.
        """
        source = float_graph(name)
        graph = self.graph(source)
        images = self.calibration or self.validation
        count = min(RANGE_IMAGES, len(images))

        def make(folder: Path) -> None:
            import onnx

            from export.half import measure_ranges

            batches = images.batches(self.options.batch, spread(len(images), count))
            ranges = measure_ranges(onnx.load(graph), batches, self.options.thread_count)
            (folder / "ranges.json").write_text(json.dumps(ranges))

        which = "validation" if self.calibration is None else "calibration"
        inputs = {"count": count, "threads": self.options.thread_count}
        after = [f"graph/{source}", f"images/{which}"]
        folder = self.stages.run(f"ranges/{source}", inputs, make, after)
        return json.loads((folder / "ranges.json").read_text())

    def _parity(
        self, name: str, graph: Graph, path: Path, images: PreparedImages
    ) -> dict[str, Any]:
        places = spread(len(self.reference[0]), PARITY_IMAGES)
        runner = LOADERS[graph.runtime](path, self.options.thread_count)
        batches = images.batches(self.options.batch, places)
        outputs = run_all(runner, batches, len(places), lambda _: None)
        reference, precision = [r[places] for r in self.reference], graph.precision
        tuned = self._fine_tuned(graph)
        if tuned is not None:
            # In float it may leave the network that was given; its INT8 graph has to come back.
            reference, precision = self._tuned_outputs(tuned, images, places), "fp32"
        row = compare_outputs(
            name.replace(SUFFIX, " with units in float, "),
            outputs,
            reference,
            tolerance_for(precision),
        )
        if precision == "fp32":  # the others may yet be mended by units in float
            require(row)
        return row

    def _fine_tuned(self, graph: Graph) -> Graph | None:
        """The export of a fine-tuned network that a float graph is or is made from, if any."""
        while not graph.narrows and graph.source is not None:
            graph = self.plan(graph.source)
        return graph if graph.tuned is not None else None

    def _tuned_outputs(
        self, graph: Graph, images: PreparedImages, places: NDArray[np.int64]
    ) -> Outputs:
        assert self.fine_tuning is not None
        runner = torch_runner(self.fine_tuning.tuned(graph))
        batches = images.batches(self.options.batch, places)
        return run_all(runner, batches, len(places), lambda _: None)

    def build(self, candidate: Candidate, units: Units = NONE) -> Path:
        """The stage folder with the candidate's file and `built.json`."""
        target, precision = candidate.target, candidate.precision
        graph = self.file_graph(target.graphs[precision], units)
        after = [f"graph/{self.file_graph_name(target.graphs[precision], units)}"]

        def make(folder: Path) -> None:
            request = BuildRequest(
                graph,
                folder / f"{self.file_stem}.{precision}.{target.suffix}",
                precision,
                self.options.gpu_archs,
                self.options.batches,
            )
            with self.progress.step(f"building {candidate.name}"):
                info = target.build(request)
            if ARITHMETIC in units:
                info["settings"][PRECISION] = "f32"
            if self.options.tune and target.runtime == "openvino":
                info["settings"], info["tuning"] = self._tune(candidate, request.path, info)
            (folder / "built.json").write_text(json.dumps(info))

        batches = self.options.batches or self.options.batch
        inputs: dict[str, Any] = {"batch": batches, "gpu_archs": self.options.gpu_archs}
        if self.options.tune:
            inputs |= {"tune": self.options.bench_seconds, "threads": self.options.thread_count}
            after.append("images/validation")
        stage = f"build/{candidate.name}{suffix(units)}"
        return self.stages.run(stage, inputs, make, after)

    def _tune(
        self, candidate: Candidate, path: Path, built: dict[str, Any]
    ) -> tuple[Settings, list[dict[str, Any]]]:
        with self.progress.task(f"tuning {candidate.name}", ROUNDS) as advance:
            return tune(
                path,
                self.fed.batch(self.options.batch),
                built["settings"],
                self.options.thread_count,
                self.options.bench_seconds,
                advance,
            )

    # Measuring

    def evaluated_file(self, candidate: Candidate, units: Units = NONE) -> tuple[Path, str]:
        """What answers for a candidate, and the stage that it is from."""
        if candidate.target.runs_graph:
            name = candidate.target.graphs[candidate.precision]
            graph = self.file_graph(name, units)
            return graph, f"graph/{self.file_graph_name(name, units)}"
        folder = self.build(candidate, units)
        file = next(folder.glob(f"*.{candidate.target.suffix}"))
        return file, f"build/{candidate.name}{suffix(units)}"

    def outputs(
        self,
        name: str,
        runtime: str,
        path: Path,
        after: str,
        settings: Settings | None = None,
        on: str = "validation",
    ) -> Outputs:
        """All outputs of a saved file on one set of images, computed once."""
        prepared = self.images[on]
        total = len(prepared)
        if self.options.output == "features":
            total = min(total, PARITY_IMAGES)
        batch = REFERENCE_BATCH if runtime == "torch" else self.options.batch
        own = prepared.preprocessing if runtime == "torch" else self.inputs.preprocessing
        images = replace(prepared, preprocessing=own)

        def make(folder: Path) -> None:
            runner = LOADERS[runtime](path, self.options.thread_count, settings, batch)
            title = f"running {name.split(SUFFIX)[0]} on {total} {on} images"
            with self.progress.task(title, total) as advance:
                arrays = run_all(runner, images.batches(batch, np.arange(total)), total, advance)
            np.savez(folder / "outputs.npz", *arrays)

        inputs = {"runtime": runtime, "batch": batch, "threads": self.options.thread_count}
        stage = f"{name}.outputs" if on == "validation" else f"{name}.{on}"
        folder = self.stages.run(stage, inputs, make, [after, f"images/{on}"])
        with np.load(folder / "outputs.npz") as file:
            return [file[f"arr_{i}"] for i in range(len(file.files))]

    def candidate_outputs(
        self, candidate: Candidate, units: Units = NONE, on: str = "validation"
    ) -> Outputs:
        """Outputs of a candidate's file; on the validation images, compared with torch's."""
        path, stage = self.evaluated_file(candidate, units)
        settings = {} if candidate.target.runs_graph else built_settings(path.parent)
        name = f"{candidate.name}{suffix(units)}"
        outputs = self.outputs(name, candidate.target.runtime, path, stage, settings, on)
        # A graph has a row of its own.
        if on == "validation" and not candidate.target.runs_graph:
            places = spread(len(outputs[0]), PARITY_IMAGES)
            self.parity[candidate.name] = compare_outputs(
                candidate.name,
                [array[places] for array in outputs],
                [array[places] for array in self.reference],
                tolerance_for(candidate.precision, settings.get(PRECISION)),
            )
        return outputs

    def _time(self, reference: Path, built: dict[str, Path]) -> dict[str, Timing]:
        files = {"torch": ("torch", reference)}
        for candidate in self.candidates:
            if candidate.target.not_timed is None:
                path, _ = self.evaluated_file(candidate, self.units[candidate.name])
                files[candidate.name] = (candidate.target.runtime, path)
        batch = self.fed.batch(self.options.batch)
        torch_batch = self.validation.batch(self.options.batch)

        def make(folder: Path) -> None:
            title = f"timing {len(files)} files alternately"
            with self.progress.task(title, ROUNDS) as advance:
                timings = measure_alternately(
                    files,
                    batch,
                    self.options.thread_count,
                    self.options.bench_seconds,
                    advance,
                    {name: built_settings(folder) for name, folder in built.items()},
                    {"torch": torch_batch},
                )
            content = {name: asdict(timing) for name, timing in timings.items()}
            (folder / "timings.json").write_text(json.dumps(content))

        inputs = {"seconds": self.options.bench_seconds, "threads": self.options.thread_count}
        after = ["images/validation", "reference"]
        after += [f"build/{name}{suffix(self.units[name])}" for name in built]
        folder = self.stages.run("timing", inputs, make, after)
        content = json.loads((folder / "timings.json").read_text())
        return {name: Timing(**timing) for name, timing in content.items()}

    # Bundle

    def _assemble(
        self,
        built: dict[str, Path],
        outputs: dict[str, Outputs],
        timings: dict[str, Timing],
        parity: list[dict[str, Any]],
    ) -> dict[str, Any]:
        folder = self.workspace / "bundle"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        used = {"simplified": NONE}
        for c in self.candidates:
            used[c.target.graphs[c.precision]] = self.units[c.name]
        graphs = {name: self.file_graph(name, used[name]) for name in GRAPHS if name in used}
        golden = bundles.write_golden_inputs(
            folder, np.asarray(self.validation.pixels), self.inputs.preprocessing
        )
        names = output_names(self.options.output == "features")
        answers = {
            c.name: bundles.write_golden_outputs(folder, c, names, outputs[c.name])
            for c in self.candidates
        }
        artefacts = bundles.copy_artefacts(
            folder, self.file_stem, graphs, self.candidates, built, answers
        )
        results = Results(
            options=self.options,
            inputs=self.inputs,
            candidates=self.candidates,
            validation=self.validation,
            calibration=self.calibration,
            fine_tuning=self.fine_tuning,
            reference=self.reference,
            outputs=outputs,
            timings=timings,
            parity=parity,
            narrowing=self.narrowing,
            fallbacks=self.fallback.rows,
            artefacts=artefacts,
        )
        report = build_report(results)
        write_report(report, folder)
        sbom = bundles.write_sbom(folder, self.inputs.weights_sha256)
        manifest = {**build_manifest(results, golden, folder), "sbom": sbom, "run": self.identity}
        write_manifest(folder, manifest)
        if self.key is not None:
            signature.sign(folder, manifest, self.key)
        bundles.place(folder, self.options.bundle)
        return report


def _select(inputs: Inputs, options: ExportOptions, held_out: int) -> dict[str, Selection]:
    """All sets of images that a run reads; calibration's in two where there are enough.

    One part sets the ranges, on the other choices are made.
    """
    preprocessing, seed = replace(inputs.preprocessing, in_graph=False), options.seed
    found = {
        "validation": Selection(
            inputs.validation, preprocessing, seed, inputs.validation_count, inputs.label_map
        )
    }
    source, count = inputs.calibration, options.calib_count
    if source is not None and len(source) < LEAST_HELD_OUT:
        whole = Selection(Subset(source, choose(source, count, seed)), preprocessing, seed)
        found |= {"calibration": whole, "ranking": whole}
    elif source is not None:
        chosen, held = hold_out(source, count, held_out, seed)
        found["calibration"] = Selection(Subset(source, chosen), preprocessing, seed)
        found["ranking"] = Selection(Subset(source, held, "held out"), preprocessing, seed)
    if inputs.tuning is not None:
        found["fine-tuning"] = Selection(inputs.tuning, preprocessing, seed)
    return found


def _stage_name(graph: str, units: Units, end: str = "") -> str:
    """A graph's own part of its stage's name."""
    return f"{graph}{end}{suffix(units) if GRAPHS[graph].narrows else ''}"


def _source_digest() -> str:
    """sha256 of this program's own code: another version may make something else of the same."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for package in ("cmt", "calib_data", "export", "quantize", "measure"):
        for path in sorted((root / package).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
