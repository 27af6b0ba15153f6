"""What each unit and each layer of a run's files loses by itself, on held-out images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cmt.calib_data.prepared import spread
from cmt.export.calibration import answers_of, load_single, ranges_stage
from cmt.export.context import Context
from cmt.export.graph_maker import GraphMaker
from cmt.export.graphs import EXACT, GRAPHS, NONE, Candidate, converted_graph, float_graph
from cmt.quantize.sensitivity import Array, measure, worst_first
from cmt.report.rows import LayerErrors, PartErrors
from cmt.targets.base import SIMULATED, run_all
from cmt.targets.registry import LOADERS

if TYPE_CHECKING:
    import onnx

SENSITIVITY_IMAGES = 16
"""Held-out images for the errors of units: enough for decibels, which average over all logits; the
gate counts changed answers on all of them."""
BY_LAYER = ("layer", "sqnr_db", "kl", "changed")
"""Fields of the rows of a unit's `by_layer`; fitted activations are of no layer and have none."""

Part = Mapping[str, object]
"""What a row says of which part it is of."""
Alone = Iterator[tuple[Part, "onnx.ModelProto", Array]]
"""The row of each part, the graph with it alone converted, and the logits of the graph without."""
Answers = Callable[["onnx.ModelProto"], Array]


class Sensitivity:
    """Measures units and layers of a run's graphs."""

    def __init__(self, context: Context, graphs: GraphMaker) -> None:
        self._context, self._graphs = context, graphs

    def report_rows(self, candidates: Sequence[Candidate]) -> list[PartErrors]:
        """What the report says of every INT8 recipe among the candidates, worst first."""
        names = dict.fromkeys(converted_graph(c) for c in candidates if c.precision == "int8")
        rows: list[PartErrors] = []
        for name in names:
            if name is not None:
                by_layer = self._by_layer(name)
                rows += [
                    {**row, "by_layer": by_layer.get(row["unit"], [])} for row in self.units(name)
                ]
        return sorted(rows, key=worst_first)

    def units(self, name: str) -> list[PartErrors]:
        """A row for each unit of the converted graph `name`."""
        graph = self._graphs.plan(name)
        assert graph.source is not None
        self._graphs.graph(graph.source)
        after = [f"graph/{graph.source}", "images/held-out"]
        if graph.recipe is not None:
            after += self._graphs.prepare(name, NONE)
        if graph.half:
            self._graphs.ranges(name)
            after.append(ranges_stage(float_graph(name)))
        if graph.has_fitted:
            self._graphs.graph(EXACT)
            after.append(f"graph/{EXACT}")

        def make(folder: Path) -> None:
            if graph.recipe is None:
                answers = self._simulated(folder)
                graphs = self._half_units(name, answers)
            else:
                answers = answers_of(self._context, SENSITIVITY_IMAGES)
                graphs = self._int8_units(name, answers)
            with self._context.progress.step(f"measuring sensitivity of '{name}'"):
                rows = measure(graphs, answers)
            (folder / "sensitivity.json").write_text(json.dumps(rows))

        folder = self._context.stages.run(f"sensitivity/{name}", self._inputs, make, after)
        return json.loads((folder / "sensitivity.json").read_text())

    @property
    def _inputs(self) -> dict[str, int]:
        return {"threads": self._context.threads, "images": SENSITIVITY_IMAGES}

    def _by_layer(self, name: str) -> dict[str, list[LayerErrors]]:
        """`by_layer` of each unit of the Q/DQ graph `name`."""
        import onnx

        from cmt.quantize.qdq import layers_by_unit

        source = self._graphs.source(name)
        after = [f"graph/{source.name}", "images/held-out", *self._graphs.prepare(name, NONE)]
        units = layers_by_unit(onnx.load(source.path), source.recipe)
        layers = {layer: {"layer": layer} for names in units.values() for layer in names}

        def make(folder: Path) -> None:
            answers = answers_of(self._context, SENSITIVITY_IMAGES)
            with self._context.progress.task(f"layers of '{name}' alone", len(layers)) as advance:
                rows = measure(self._alone(name, answers, layers), answers, advance)
            (folder / "layers.json").write_text(json.dumps(rows))

        folder = self._context.stages.run(f"layers/{name}", self._inputs, make, after)
        rows = json.loads((folder / "layers.json").read_text())
        return {
            unit: [
                cast(LayerErrors, {k: row[k] for k in BY_LAYER})
                for row in rows
                if row["layer"] in names
            ]
            for unit, names in units.items()
        }

    def _int8_units(self, name: str, answers: Answers) -> Alone:
        import onnx

        from cmt.quantize.graft import fitted_units, restore_gelu
        from cmt.quantize.qdq import int8_units

        source = self._graphs.source(name)
        units = {
            unit: {"recipe": source.recipe.name, "unit": unit, "layers": n.layers, "macs": n.macs}
            for unit, n in int8_units(onnx.load(source.path), source.recipe).items()
        }
        yield from self._alone(name, answers, units)
        # What has learned along with its fitted activations is not what GELU's weights are for.
        if GRAPHS[name].has_fitted and self._graphs.learned(name) is None:
            exact, model = load_single(self._graphs.graph(EXACT)), source.load()
            reference, fitted = answers(exact), fitted_units(model)
            for unit in fitted:
                row = {"recipe": source.recipe.name, "unit": unit, "layers": 0, "macs": 0}
                yield row, restore_gelu(model, exact, set(fitted) - {unit}), reference

    def _alone(self, name: str, answers: Answers, rows: Mapping[str, Part]) -> Alone:
        """Of a Q/DQ graph.

        Args:
            rows: by part, a unit or a layer; together they are all that the recipe quantises.
        """
        from cmt.quantize.qdq import insert_qdq

        source, choice = self._graphs.source(name), self._graphs.choice(name)
        histograms, model = self._graphs.histograms(name), source.load()
        reference = answers(model)
        for part, row in rows.items():
            graph = insert_qdq(
                model,
                histograms,
                source.recipe,
                method=choice.method,
                keep_float=rows.keys() - {part},
                rounded=choice.rounded,
            )
            yield row, graph, reference

    def _half_units(self, name: str, answers: Answers) -> Alone:
        import onnx

        from cmt.quantize.half import to_fp16
        from cmt.quantize.qdq import all_units

        source = self._graphs.plan(name).source
        assert source is not None
        model = onnx.load(self._graphs.graph(source))
        reference, units = answers(model), all_units(model)
        for unit, size in units.items():
            row = {"recipe": "fp16", "unit": unit, "layers": size.layers, "macs": size.macs}
            yield row, to_fp16(model, self._graphs.ranges(name), units.keys() - {unit}), reference

    def _simulated(self, folder: Path) -> Answers:
        """What runs a graph with the rounding that its types ask for."""
        import onnx

        context, path = self._context, folder / "graph.onnx"
        images = context.images.held_out
        places = spread(len(images), SENSITIVITY_IMAGES)

        def answers(model: onnx.ModelProto) -> Array:
            onnx.save(model, path)
            runner = LOADERS[SIMULATED](path, context.threads)
            path.unlink()
            batches = images.batches(context.options.batch, places)
            return run_all(runner, batches, len(places), lambda _: None)[0]

        return answers
