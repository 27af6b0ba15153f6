"""The ONNX graphs of a run: each made from its source, as a stage, and compared with torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cmt.calib_data.prepared import PreparedImages
from cmt.export.answers import REFERENCE
from cmt.export.calibration import (
    RangeChoice,
    Source,
    calibrate,
    calibration_stage,
    choose_ranges,
    histograms_of,
    largest_magnitudes,
    ranges_stage,
)
from cmt.export.context import Context
from cmt.export.epochs import FineTuning
from cmt.export.evaluation import parity_places
from cmt.export.graphs import (
    EXACT,
    GRAPHS,
    NONE,
    PLAIN,
    SUFFIX,
    Graph,
    chain,
    float_graph,
    stage_name,
)
from cmt.export.networks import make_network
from cmt.export.onnx_graph import OPSET, embed_preprocessing, export_onnx, simplify_onnx
from cmt.measure.parity import compare_outputs, require, tolerance_for
from cmt.measure.shards import Outputs
from cmt.quantize.graft import PREFIX, goes_back, is_fitted_unit, restore_gelu
from cmt.quantize.ranges import Histogram
from cmt.quantize.recipe import OPENVINO, RECIPES
from cmt.quantize.search import Units
from cmt.report.rows import Parity
from cmt.targets.base import run_all
from cmt.targets.reference import torch_runner
from cmt.targets.registry import LOADERS, TARGETS

_TORCH_STAGES = ["torch.outputs", REFERENCE]


class GraphMaker:
    """Makes the graphs of a run.

    Args:
        reference: what the torch network answers on `evaluation.parity_places`.
    """

    def __init__(self, context: Context, reference: Outputs) -> None:
        self.context, self._reference = context, reference
        self._fine_tuning = FineTuning(context) if context.options.qat else None

    @property
    def fine_tuning(self) -> FineTuning | None:
        """The fine-tuned networks; None in a run without."""
        return self._fine_tuning

    def plan(self, name: str) -> Graph:
        """How this run makes the graph `name`."""
        graph = GRAPHS[name]
        return graph if self._fine_tuning is not None else replace(graph, tuned=None)

    def graph(self, name: str, units: Units = NONE) -> Path:
        """The ONNX graph `name`, with these units at the precision of its source."""
        graph = self.plan(name)
        if graph.source is None:
            return self._exported(name, graph)
        source = self.graph(graph.source, units)
        after = ["torch.outputs", f"graph/{stage_name(graph.source, units)}"]
        if graph.recipe is not None:
            after += self.prepare(name, units)
        if graph.half:
            self.ranges(name)
            after.append(ranges_stage(float_graph(name)))

        def write(path: Path) -> None:
            if graph.is_converted:
                self._convert(name, source, path, units)
            else:
                simplify_onnx(source, path)

        stage = stage_name(name, units)
        return self._write(stage, graph, write, self.context.images.validation, after)

    def _exported(self, name: str, graph: Graph) -> Path:
        """A graph that is made from a torch network."""
        after = list(_TORCH_STAGES)
        if graph.fitted or graph.equalised:
            after.append("images/calibration")
        tuning = self._fine_tuning if graph.tuned is not None else None
        if tuning is not None:
            after.append(tuning.stage(graph))

        def write(path: Path) -> None:
            network = make_network(self.context, graph) if tuning is None else tuning.tuned(graph)
            export_onnx(network, self.context.options.batch, path)

        return self._write(name, graph, write, self.context.images.validation, after)

    def file_graph(self, name: str, units: Units = NONE) -> Path:
        """The graph `name` as files are built from it.

        If asked, with the preprocessing in it, and where engines take several batches, for any.
        """
        source = self.graph(name, units)
        if self.file_stage(name, units) == stage_name(name, units):
            return source

        def write(path: Path) -> None:
            import onnx

            from cmt.targets.onnx_edit import free_batch

            model = onnx.load(source)
            if self.context.options.embed_preprocess:
                model = embed_preprocessing(model, self.context.inputs.preprocessing)
            if self._takes_any_batch(name):
                free_batch(model)
            onnx.save(model, path)

        images = self.context.as_fed(self.context.images.validation)
        after = ["torch.outputs", f"graph/{stage_name(name, units)}", "images/validation"]
        return self._write(self.file_stage(name, units), self.plan(name), write, images, after)

    def file_stage(self, name: str, units: Units) -> str:
        """The stage of `file_graph`, behind `graph/`."""
        pixels = "-uint8" if self.context.options.embed_preprocess else ""
        batch = "-any-batch" if self._takes_any_batch(name) else ""
        return stage_name(name, units, pixels + batch)

    def _takes_any_batch(self, name: str) -> bool:
        options = self.context.options
        targets = [TARGETS[target] for target in options.targets]
        return options.batch_range is not None and any(
            target.takes_batch_range and name in target.graphs.values() for target in targets
        )

    def _write(
        self,
        stage: str,
        graph: Graph,
        write: Callable[[Path], None],
        images: PreparedImages,
        after: list[str],
    ) -> Path:
        """A graph's stage: what `write` writes, compared with torch on `images`."""
        context = self.context

        def make(folder: Path) -> None:
            path = folder / "graph.onnx"
            with context.progress.step(f"writing ONNX graph '{stage}'"):
                write(path)
            row = self._parity(stage, graph, path, images)
            (folder / "parity.json").write_text(json.dumps(row))

        inputs = {"batch": context.options.batch, "opset": OPSET, "threads": context.threads}
        return context.stages.run(f"graph/{stage}", inputs, make, after) / "graph.onnx"

    # Conversion to INT8 and FP16

    def source(self, name: str) -> Source:
        """What the Q/DQ graph `name` is made from."""
        graph = self.plan(name)
        assert graph.source is not None
        assert graph.recipe is not None
        return Source(graph.source, self.graph(graph.source), RECIPES[graph.recipe])

    def histograms(self, name: str) -> dict[str, Histogram]:
        """What the tensors of the graph behind the Q/DQ graph `name` take on."""
        return histograms_of(self.context, self.source(name))

    def choice(self, name: str) -> RangeChoice:
        """How the ranges of the Q/DQ graph `name` are chosen."""
        learned = self.learned(name)
        plain = Source(PLAIN, self.graph(PLAIN), self.source(name).recipe) if learned else None
        return choose_ranges(self.context, name, self.source(name), learned, plain)

    def learned(self, name: str) -> str | None:
        """How the ranges were chosen that the network of a Q/DQ graph learned with, if it did."""
        recipe = self.source(name).recipe  # its stage tells
        return None if self._fine_tuning is None else self._fine_tuning.method(recipe.name)

    def ranges(self, name: str) -> dict[str, float]:
        """Largest magnitudes in the float32 graph behind the graph `name`."""
        source = float_graph(name)
        return largest_magnitudes(self.context, source, self.graph(source))

    def prepare(self, name: str, units: Units) -> list[str]:
        """Make the stages that the Q/DQ graph `name` is made from; returns their names."""
        source = self.source(name)
        stages = [calibration_stage(source.name)]
        if self.choice(name).row is not None:
            stages.append(f"method/{name}")
        if _restores(source, units):
            calibrate(self.context, self._exact(source))
            stages += [f"graph/{EXACT}", calibration_stage(EXACT)]
        return stages

    def _exact(self, source: Source) -> Source:
        """The graph whose GELUs go back into a fitted one."""
        return Source(EXACT, self.graph(EXACT), source.recipe)

    def _convert(self, name: str, source: Path, path: Path, units: Units) -> None:
        import onnx

        from cmt.quantize.half import to_fp16

        graph, model = self.plan(name), onnx.load(source)
        if graph.recipe is not None:
            model = self._quantised(name, model, units)
        else:
            # What a Q/DQ graph leaves float is half here.
            of_converted = graph.source is not None and GRAPHS[graph.source].is_converted
            model = to_fp16(model, self.ranges(name), NONE if of_converted else units)
        onnx.save(model, path)

    def _quantised(self, name: str, model: Any, units: Units) -> Any:
        """The Q/DQ graph `name` from its source, with these units left float."""
        import onnx

        from cmt.quantize.qdq import insert_qdq

        source, choice = self.source(name), self.choice(name)
        histograms, rounded = histograms_of(self.context, source), choice.rounded
        if _restores(source, units):
            exact = self._exact(source)
            model = restore_gelu(model, onnx.load(exact.path), units)
            of_exact = histograms_of(self.context, exact)
            histograms |= {PREFIX + tensor: values for tensor, values in of_exact.items()}
            # Those were fitted to layers that serve fitted activations.
            rounded = {n: r for n, r in (rounded or {}).items() if not goes_back(n, units)}
        return insert_qdq(
            model,
            histograms,
            source.recipe,
            method=choice.method,
            keep_float=units,
            rounded=rounded,
        )

    # Parity

    def parity(self, graphs: Iterable[tuple[str, Units]]) -> dict[str, Parity]:
        """By stage, the rows of these graphs as files are built from them, and of their sources.

        Graphs that no file is made of any more, because all of their fitted activations went back,
        are held to nothing and have no row.
        """
        rows: dict[str, Parity] = {}
        for name, units in graphs:
            for stage in self._lineage(name, units):
                folder = self.context.stages.workspace / "graph" / stage
                rows[stage] = json.loads((folder / "parity.json").read_text())
        return rows

    def _lineage(self, name: str, units: Units) -> list[str]:
        sources = list(chain(name))[::-1]
        quantised = [source for source in sources if self.plan(source).recipe is not None]
        if quantised and _restores(self.source(quantised[0]), units):
            fitted = [s for s in sources if GRAPHS[s].has_fitted and not GRAPHS[s].is_converted]
            sources = [*list(chain(EXACT))[::-1], *(s for s in sources if s not in fitted)]
        stages = [stage_name(source, units) for source in sources]
        return list(dict.fromkeys([*stages, self.file_stage(name, units)]))

    def _parity(self, stage: str, graph: Graph, path: Path, images: PreparedImages) -> Parity:
        options, threads = self.context.options, self.context.threads
        places = parity_places(self.context)
        runner = LOADERS[graph.runtime](path, threads)
        outputs = run_all(
            runner, images.batches(options.batch, places), len(places), lambda _: None
        )
        reference, precision = self._reference, graph.precision
        tuned = self._fine_tuned(graph)
        if tuned is not None and self._fine_tuning is not None:
            # In float it may leave the network that was given; its INT8 graph has to come back.
            runner = torch_runner(self._fine_tuning.tuned(tuned))
            batches = images.batches(options.batch, places)
            reference = run_all(runner, batches, len(places), lambda _: None)
            precision = "fp32"
        row = compare_outputs(
            stage.replace(SUFFIX, " with units in float, "),
            outputs,
            reference,
            tolerance_for(precision),
        )
        if precision == "fp32":  # the others may yet be mended by units in float
            require(row)
        return row

    def _fine_tuned(self, graph: Graph) -> Graph | None:
        """The export of a fine-tuned network that a float graph is or is made from, if any."""
        while not graph.is_converted and graph.source is not None:
            graph = self.plan(graph.source)
        return graph if graph.tuned is not None else None


def _restores(source: Source, units: Units) -> bool:
    """Whether some fitted activations are among what goes back."""
    return source.recipe.name == OPENVINO and any(map(is_fitted_unit, units))
