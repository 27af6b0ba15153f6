"""The targets' files of a run: built from graphs, run on images, timed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cmt.export.answers import REFERENCE, Asked, answers, asked_file
from cmt.export.context import Context
from cmt.export.evaluation import evaluate, parity_places
from cmt.export.graph_maker import GraphMaker
from cmt.export.graphs import NONE, Candidate, short_hash, suffix
from cmt.export.images import HELD_OUT
from cmt.measure.latency import MOST_ROUNDS, measure_alternately
from cmt.measure.parity import compare_outputs, tolerance_for
from cmt.measure.shards import FileAnswers, Outputs
from cmt.measure.timing import Timing, speedup
from cmt.measure.tune import Search
from cmt.quantize.search import Units
from cmt.report.rows import Parity, Speedup
from cmt.targets.base import BuildRequest, Prediction
from cmt.targets.entries import Built
from cmt.targets.reference import TORCH
from cmt.targets.settings import PRECISION, Settings, Tried, built_settings

ARITHMETIC = "float arithmetic"
"""The unit of BF16 where a file says float; back to float32, it costs every operator of it."""
SLOWDOWN_SECONDS = 1.0
"""Spent on each choice that is timed."""


class FileMaker:
    """Builds and runs the files of a run.

    Args:
        stem: of the files' names.
    """

    def __init__(self, context: Context, graphs: GraphMaker, stem: str) -> None:
        self._context, self._graphs, self.stem = context, graphs, stem

    def build(self, candidate: Candidate, units: Units = NONE) -> Path:
        """The stage folder with the candidate's file and `built.json`."""
        target, precision, options = candidate.target, candidate.precision, self._context.options
        graph = self._graphs.file_graph(candidate.graph, units)
        after = [f"graph/{self._graphs.file_stage(candidate.graph, units)}"]
        # What is searched is what CPUs have: threads, and BF16.
        on_cpu = self._context.on_cpu
        tuned = options.tune is not False and on_cpu and target.tune_space is not None

        def make(folder: Path) -> None:
            request = BuildRequest(
                graph,
                folder / f"{self.stem}.{precision}.{target.suffix}",
                precision,
                options.gpu_archs,
                options.batches if target.takes_batch_range else None,
                options.device,
            )
            with self._context.progress.step(f"building {candidate.name}"):
                info = target.build(request)
            if ARITHMETIC in units:
                info["settings"] = {**info["settings"], PRECISION: "f32"}
            if tuned:
                info["settings"], info["tuning"] = self._tune(candidate, request.path, info)
            (folder / "built.json").write_text(json.dumps(info))

        batches = options.batches or options.batch
        inputs: dict[str, Any] = {"batch": batches, "gpu_archs": options.gpu_archs}
        inputs["device"] = options.device
        if tuned:
            inputs |= {
                "tune": options.tune and options.bench_seconds,
                "threads": self._context.threads,
            }
            after.append("images/validation")
        return self._context.stages.run(_build_stage(candidate, units), inputs, make, after)

    def _tune(self, candidate: Candidate, path: Path, built: Built) -> tuple[Settings, list[Tried]]:
        context = self._context
        search = Search(
            candidate.target,
            path,
            self._batch(),
            built["settings"],
            context.threads,
            context.machine,
        )
        if context.options.tune:
            return search.thorough(context.options.bench_seconds, context.progress.task)
        return search.short(context.progress.task)

    def _batch(self) -> np.ndarray:
        """What files are timed with."""
        images = self._context.as_fed(self._context.images.validation)
        return images.batch(self._context.options.batch)

    def evaluated(self, candidate: Candidate, units: Units = NONE) -> tuple[Path, str]:
        """What answers for a candidate, and the stage that it is from."""
        if candidate.target.simulated:
            graph = self._graphs.file_graph(candidate.graph, units)
            return graph, f"graph/{self._graphs.file_stage(candidate.graph, units)}"
        folder = self.build(candidate, units)
        file = next(folder.glob(f"*.{candidate.target.suffix}"))
        return file, _build_stage(candidate, units)

    def size(self, candidate: Candidate, units: Units = NONE) -> int:
        """Bytes of what answers for a candidate."""
        path, _ = self.evaluated(candidate, units)
        files = (file for file in path.parent.iterdir() if file.stem == path.stem)
        return sum(file.stat().st_size for file in files)

    def settings(self, candidate: Candidate, units: Units = NONE) -> Settings:
        """What a candidate's file runs with; none of a graph that is simulated."""
        if candidate.target.simulated:
            return {}
        return self._context.settings(built_settings(self.build(candidate, units)))

    def asked(self, candidate: Candidate, units: Units = NONE) -> Asked:
        """A candidate's file as it is asked."""
        context, (path, stage) = self._context, self.evaluated(candidate, units)
        name, settings = f"{candidate.name}{suffix(units)}", self.settings(candidate, units)
        runtime, batch = candidate.target.runtime, context.options.batch
        return Asked(asked_file(context, name, runtime, path, settings, batch), stage)

    def answers(self, candidate: Candidate, units: Units = NONE) -> FileAnswers:
        """What a candidate's file answers to the validation images."""
        asked = self.asked(candidate, units)
        return evaluate(self._context, [asked])[asked.file["name"]]

    def held_out(self, candidate: Candidate, units: Units = NONE) -> Outputs:
        """What a candidate's file answers to the held-out images."""
        places = np.arange(len(self._context.images.held_out))
        return answers(self._context, self.asked(candidate, units), places, HELD_OUT)

    def parity(self, candidate: Candidate, units: Units, reference: FileAnswers) -> Parity | None:
        """The file's answers beside torch's; None of a graph, which has a row of its own."""
        if candidate.target.simulated:
            return None
        places = parity_places(self._context)
        device = self._context.options.device
        return compare_outputs(
            candidate.name if device is None else f"{candidate.name} on {device}",
            self.answers(candidate, units).at(places),
            reference.at(places),
            tolerance_for(candidate.precision, self.settings(candidate, units).get(PRECISION)),
        )

    def slowdowns(self, candidate: Candidate, choices: Sequence[Units]) -> list[Speedup] | None:
        """How many times as long the file takes with these units in float, in one alternation.

        None where the machine was busy.
        """
        context, tried = self._context, [NONE, *choices]
        places = [self.evaluated(candidate, units) for units in tried]
        files = {str(i): (candidate.target.runtime, path) for i, (path, _) in enumerate(places)}
        settings = {str(i): self.settings(candidate, units) for i, units in enumerate(tried)}

        def make(folder: Path) -> None:
            title = f"timing {len(choices)} choices for {candidate.name}"
            with context.progress.task(title, MOST_ROUNDS) as advance:
                timings = measure_alternately(
                    files, self._batch(), context.threads, SLOWDOWN_SECONDS, advance, settings
                )
            plain, *others = timings.values()
            found = [speedup(plain, other) for other in others]
            (folder / "slowdowns.json").write_text(json.dumps(found))

        after = ["images/validation", *dict.fromkeys(stage for _, stage in places)]
        inputs = {"threads": context.threads, "seconds": SLOWDOWN_SECONDS}
        stage = f"{candidate.name}.slowdowns~{short_hash([sorted(c) for c in choices])}"
        folder = context.stages.run(stage, inputs, make, after)
        found = json.loads((folder / "slowdowns.json").read_text())
        return None if None in found else found

    def predicted(self, candidate: Candidate, units: Units = NONE) -> Prediction | None:
        """What the target's builder says of a file's time on a GPU that need not be here.

        None of float32 files, which tensor cores have no part in, and where nothing can be said.
        """
        advice, options = candidate.target.gpu_advice, self._context.options
        if advice is None or candidate.precision not in advice.alignment:
            return None
        graph = self._graphs.file_graph(candidate.graph, units)

        def make(folder: Path) -> None:
            with self._context.progress.step(f"reading the builder's record of {candidate.name}"):
                found = advice.predict(graph, options.gpu_archs, options.batch)
            (folder / "record.json").write_text(json.dumps(found))

        inputs = {"batch": options.batch, "gpu_archs": options.gpu_archs}
        after = [f"graph/{self._graphs.file_stage(candidate.graph, units)}"]
        stage = f"record/{candidate.name}{suffix(units)}"
        folder = self._context.stages.run(stage, inputs, make, after)
        return json.loads((folder / "record.json").read_text())

    def time(self, network: Path, chosen: Mapping[Candidate, Units]) -> dict[str, Timing]:
        """The latencies of torch and of all files that are timed here, in one alternation.

        Args:
            network: of `export.answers.reference_network`.
            chosen: what stays float in each candidate.
        """
        context, options = self._context, self._context.options
        files, settings = {TORCH: (TORCH, network)}, {}
        after = ["images/validation", REFERENCE]
        for candidate, units in chosen.items():
            self.build(candidate, units)
            after.append(_build_stage(candidate, units))
            if candidate.target.not_timed is None:
                path, _ = self.evaluated(candidate, units)
                files[candidate.name] = (candidate.target.runtime, path)
                settings[candidate.name] = self.settings(candidate, units)
        plain = context.images.validation.batch(options.batch)

        def make(folder: Path) -> None:
            title = f"timing {len(files)} files alternately"
            with context.progress.task(title, MOST_ROUNDS) as advance:
                timings = measure_alternately(
                    files,
                    self._batch(),
                    context.threads,
                    options.bench_seconds,
                    advance,
                    settings,
                    {TORCH: plain},
                )
            content = {name: asdict(timing) for name, timing in timings.items()}
            (folder / "timings.json").write_text(json.dumps(content))

        inputs = {"seconds": options.bench_seconds, "threads": context.threads}
        folder = context.stages.run("timing", inputs, make, after)
        content = json.loads((folder / "timings.json").read_text())
        return {name: Timing.from_json(timing) for name, timing in content.items()}


def _build_stage(candidate: Candidate, units: Units) -> str:
    return f"build/{candidate.name}{suffix(units)}"
