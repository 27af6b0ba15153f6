"""What a run narrows to INT8 and FP16: how ranges are chosen, and what each unit loses.

Choices are made on held-out calibration images, never on validation ones, which only confirm.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calib_data.prepared import PreparedImages, spread
from calib_data.shift import distance
from export.candidates import GRAPHS, Candidate, float_graph, int8_graph
from measure.runners import LOADERS, SIMULATED, run_all
from quantize.choice import choose
from quantize.gate import Units
from quantize.ranges import METHODS, MSE, Histogram, load_histograms, save_histograms
from quantize.recipe import EXPLICIT, OPENVINO, SCHEMES, Scheme
from quantize.sensitivity import Array, errors, measure, run_on, worst_first

if TYPE_CHECKING:
    import onnx

    from export.pipeline import Run
    from quantize.qdq import Rounded

NONE: Units = frozenset()
SUFFIX = "~"
SENSITIVITY_IMAGES = 16
"""Held-out images for the errors of units: enough for decibels, which average over all logits; the
gate counts changed answers on all of them."""
METHOD_IMAGES = 64
"""Held-out images for the errors of methods, which lie closer together: docs/accuracy.md."""
BY_LAYER = ("layer", "sqnr_db", "kl", "changed")
"""Fields of the rows of a unit's `by_layer`; stand-ins are of no layer and have no rows."""
FEW_IMAGES = 128
"""Fewer that set ranges are warned of."""
ENOUGH_IMAGES = 4 * FEW_IMAGES // 3 + 1
"""Leave that many when a quarter is held out."""
FAR = 0.5
"""Standard deviations between calibration and validation images, see docs/accuracy.md."""
OUTSIDE = {OPENVINO: 1e-5, EXPLICIT: 1e-3}
"""Share of values beyond all that calibration met, mean over tensors, see there. By recipe: where
channels are of one size, any of them can pass what was met, not only the largest."""
OUTSIDE_IMAGES = 32
FITTED = ", weights fitted"
"""What the report says behind the method of choosing ranges where `quantize.rounding` helped."""
_ROUNDED = "rounded.npz"
_SAMPLED = 256

Row = dict[str, Any]


def suffix(units: Units) -> str:
    """What tells the stages of a file with these units in float from others of its name."""
    return f"{SUFFIX}{short_hash(sorted(units))}" if units else ""


def short_hash(content: Any) -> str:
    """Twelve hexadecimal digits for a stage's name."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


class Narrowing:
    """The part of a run that decides on precision.

    Attributes:
        calibration: how each recipe's ranges were chosen, the report's `calibration`.
        sensitivity: rows of the report's `sensitivity`; None where it was not measured.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.calibration: list[Row] = []
        self.sensitivity: list[Row] | None = None

    @property
    def held_out(self) -> int:
        """Calibration images that set no range."""
        images, calibration = self._run.images.get("ranking"), self._run.calibration
        if images is None or calibration is None or images.keys == calibration.keys:
            return 0
        return len(images)

    @property
    def no_sensitivity(self) -> str | None:
        """Why sensitivity is not measured; None where it is."""
        run = self._run
        if not run.options.sensitivity:
            return "not asked for with --sensitivity"
        if all(c.precision != "int8" for c in run.candidates):
            return "no INT8 file was asked for"
        if run.options.output == "features":
            return "feature maps have no first answer"
        return None

    @property
    def _chooses(self) -> bool:
        """Whether ranges and weights are chosen by the error of the logits."""
        return self._run.options.output == "logits"

    def _learned(self, scheme: Scheme) -> str | None:
        """How the ranges were chosen that this recipe's network learned with; None without.

        To be asked when its graph is there.
        """
        tuning = self._run.fine_tuning
        return tuning.method(scheme.name) if tuning is not None else None

    # INT8 graphs

    def _recipe(self, name: str) -> tuple[str, Scheme]:
        """What the Q/DQ graph `name` is made from in this run, and by which recipe."""
        graph = self._run.plan(name)
        assert graph.source is not None
        assert graph.scheme is not None
        return graph.source, SCHEMES[graph.scheme]

    def prepare(self, name: str, units: Units) -> list[str]:
        """Make the stages that the Q/DQ graph `name` is made from; returns their names."""
        source, scheme = self._recipe(name)
        stages = [f"calibration/{source}"]
        self._histograms(source, scheme)
        self._choice(name)
        if self._chooses:
            stages.append(f"method/{name}")
        if _restored(scheme, units):
            self._histograms(_EXACT, scheme)
            stages += [f"graph/{_EXACT}", f"calibration/{_EXACT}"]
        return stages

    def quantise(self, name: str, model: onnx.ModelProto, units: Units) -> onnx.ModelProto:
        """The Q/DQ graph `name` from its source, with these units left float."""
        from quantize.graft import PREFIX, goes_back, restore_gelu
        from quantize.qdq import insert_qdq

        source, scheme = self._recipe(name)
        histograms = self._histograms(source, scheme)
        method, rounded = self._choice(name)
        if _restored(scheme, units):
            model = restore_gelu(model, self._load(_EXACT), units)
            exact = self._histograms(_EXACT, scheme)
            histograms |= {PREFIX + tensor: values for tensor, values in exact.items()}
            # Those were fitted to layers that serve stand-ins.
            rounded = {name: r for name, r in rounded.items() if not goes_back(name, units)}
        return insert_qdq(
            model, histograms, scheme, method=method, keep_float=units, rounded=rounded
        )

    def replaced(self, candidate: Candidate, units: Units) -> list[str]:
        """The float graphs with all stand-ins, if some of the candidate's have gone back."""
        name = int8_graph(candidate.target.graphs[candidate.precision])
        if name is None or not _restored(self._recipe(name)[1], units):
            return []
        return [name for name, graph in GRAPHS.items() if graph.has_stand_ins and not graph.narrows]

    def _load(self, graph: str) -> onnx.ModelProto:
        import onnx

        return onnx.load(self._run.graph(graph))

    def _load_single(self, graph: str) -> onnx.ModelProto:
        """The same for one image at a time, so that what is found hangs on no batch."""
        from export.onnx_graph import set_batch

        model = self._load(graph)
        if self._run.options.batch > 1:
            set_batch(model, 1)
        return model

    def _histograms(self, source: str, scheme: Scheme) -> dict[str, Histogram]:
        """What the tensors of the float graph `source` take on that this recipe quantises."""
        run = self._run
        images = run.calibration
        assert images is not None
        model, threads = self._load_single(source), run.options.thread_count

        def make(folder: Path) -> None:
            from quantize.qdq import observe

            with run.progress.task("calibrating", len(images)) as advance:
                histograms = observe(model, images.batches(1), scheme, advance, threads)
            save_histograms(histograms, folder / "histograms.npz")

        inputs = {"scheme": scheme.name, "threads": threads}
        after = [f"graph/{source}", "images/calibration"]
        folder = run.stages.run(f"calibration/{source}", inputs, make, after)
        return load_histograms(folder / "histograms.npz")

    def _choice(self, name: str) -> tuple[str, Mapping[str, Rounded]]:
        """How the ranges of the Q/DQ graph `name` are chosen, and its fitted weights.

        What has the least error; none are fitted where that does no good. A fine-tuned network
        keeps the ranges and the nearest levels that it learned with; the error is then from the
        network given.
        """
        from quantize.rounding import load_rounded

        run = self._run
        source, scheme = self._recipe(name)
        learned = self._learned(scheme)
        if not self._chooses:
            return learned or MSE, {}
        after = [f"calibration/{source}", "images/calibration", "images/ranking"]
        if learned:
            run.graph(_PLAIN)
            after.append(f"graph/{_PLAIN}")

        def make(folder: Path) -> None:
            from quantize.qdq import insert_qdq
            from quantize.rounding import save_rounded

            answers = self._runner(METHOD_IMAGES)
            histograms = self._histograms(source, scheme)
            model = self._load_single(source)
            reference = answers(self._load_single(_PLAIN) if learned else model)

            rows: list[Row] = []
            methods = [learned] if learned else METHODS

            with run.progress.task("choosing ranges", len(methods)) as advance:

                def judge(method: str, rounded: Mapping[str, Rounded] | None) -> float:
                    graph = insert_qdq(model, histograms, scheme, method=method, rounded=rounded)
                    title = method if rounded is None else method + FITTED
                    rows.append({"method": title, **errors(answers(graph), reference)})
                    advance(rounded is None)
                    return -worst_first(rows[-1])

                def fit(method: str) -> dict[str, Rounded]:
                    return self._fit_weights(source, histograms, scheme, method)

                choice = choose(methods, judge, None if learned else fit)
            title = choice.method
            if choice.fitted is not None:
                title += FITTED
                save_rounded(choice.fitted, folder / _ROUNDED)
            content = {"recipe": scheme.name, "chosen": title, "methods": rows}
            (folder / "method.json").write_text(json.dumps({**content, "images": len(reference)}))

        inputs = {"threads": run.options.thread_count, "images": METHOD_IMAGES}
        folder = run.stages.run(f"method/{name}", inputs, make, after)
        row = json.loads((folder / "method.json").read_text())
        if row not in self.calibration:
            self.calibration.append(row)
        fitted = (folder / _ROUNDED).exists()
        return row["chosen"].removesuffix(FITTED), load_rounded(folder / _ROUNDED) if fitted else {}

    def _fit_weights(
        self, source: str, histograms: Mapping[str, Histogram], scheme: Scheme, method: str
    ) -> dict[str, Rounded]:
        """Of the float graph `source`, for inputs with the ranges of this method."""
        from quantize.rounding import IMAGES, round_weights

        run, images = self._run, self._run.calibration
        assert images is not None
        places = spread(len(images), IMAGES)
        with run.progress.task("fitting weights", len(places)) as advance:
            return round_weights(
                self._load_single(source),
                images.batches(1, places),
                histograms,
                scheme,
                method=method,
                progress=advance,
                threads=run.options.thread_count,
            )

    def _runner(self, count: int) -> Callable[[onnx.ModelProto], Array]:
        images = self._run.images["ranking"]
        places = spread(len(images), count)
        batches = images.batches(1, places)
        return run_on(batches, len(places), self._run.options.thread_count)

    def warnings(self) -> list[str]:
        """What speaks against the calibration images, a line each."""
        run, images = self._run, self._run.calibration
        if images is None or all(c.precision != "int8" for c in run.candidates):
            return []
        lines = []
        if len(images) < FEW_IMAGES:
            lines.append(
                f"{len(images)} calibration images are few, and the ranges hang on which: give "
                f"{ENOUGH_IMAGES} or more, of which a quarter sets no ranges"
            )
        if run.inputs.not_labelled is not None:  # what validates is of no certain kind
            return lines
        far, feature = distance(_sample(images), _sample(run.validation))
        if far > FAR:
            lines.append(
                "calibration images are unlike the validation images: their mean "
                f"{feature} is {far:.1f} standard deviations away ({FAR:g} is accepted); "
                "give images of the kind that the network will see"
            )
        graphs = (c.target.graphs[c.precision] for c in run.candidates)
        for name in dict.fromkeys(int8_graph(graph) for graph in graphs):
            if name is not None:
                outside, accepted = self._outside(name), OUTSIDE[self._recipe(name)[1].name]
                if outside > accepted:
                    lines.append(
                        f"{1e6 * outside:,.1f} in a million values that INT8 layers are given on "
                        f"validation images are beyond anything met in calibration "
                        f"({1e6 * accepted:,.0f} are accepted, {GRAPHS[name].scheme} recipe): give "
                        "more images, of the kind that the network will see"
                    )
        return lines

    def _outside(self, name: str) -> float:
        """The share of validation activations outside all that calibration met, tensors alike."""
        run = self._run
        source, scheme = self._recipe(name)
        histograms, model = self._histograms(source, scheme), self._load_single(source)
        places, threads = spread(len(run.validation), OUTSIDE_IMAGES), run.options.thread_count

        def make(folder: Path) -> None:
            from quantize.qdq import observe

            met = observe(model, run.validation.batches(1, places), scheme, threads=threads)
            shares = [
                met[tensor].share_outside(values.levels(scheme.asymmetric, "minmax"))
                for tensor, values in histograms.items()
            ]
            (folder / "outside.json").write_text(json.dumps(float(np.mean(shares))))

        inputs = {"images": len(places), "threads": threads}
        after = [f"calibration/{source}", "images/validation"]
        folder = run.stages.run(f"outside/{name}", inputs, make, after)
        return json.loads((folder / "outside.json").read_text())

    # Sensitivity

    def finish(self, candidates: Sequence[Candidate]) -> None:
        """Measure what the report says of every INT8 recipe in the run, if asked for."""
        if self.no_sensitivity is not None:
            return
        names = dict.fromkeys(narrowed_graph(c) for c in candidates if c.precision == "int8")
        rows = []
        for name in names:
            if name is not None:
                by_layer = self._by_layer(name)
                rows += [
                    {**row, "by_layer": by_layer.get(row["unit"], [])} for row in self.rows(name)
                ]
        self.sensitivity = sorted(rows, key=worst_first)

    def _by_layer(self, name: str) -> dict[str, list[Row]]:
        """`by_layer` of each unit of the graph `name`."""
        from quantize.qdq import layers_by_unit

        run = self._run
        source, scheme = self._recipe(name)
        after = [f"graph/{source}", "images/ranking", *self.prepare(name, NONE)]
        units = layers_by_unit(self._load(source), scheme)
        layers = {layer: {"layer": layer} for names in units.values() for layer in names}

        def make(folder: Path) -> None:
            answers = self._runner(SENSITIVITY_IMAGES)
            with run.progress.task(f"layers of '{name}' alone", len(layers)) as advance:
                rows = measure(self._alone(name, answers, layers), answers, advance)
            (folder / "layers.json").write_text(json.dumps(rows))

        inputs = {"threads": run.options.thread_count, "images": SENSITIVITY_IMAGES}
        folder = run.stages.run(f"layers/{name}", inputs, make, after)
        rows = json.loads((folder / "layers.json").read_text())
        return {
            unit: [{key: row[key] for key in BY_LAYER} for row in rows if row["layer"] in names]
            for unit, names in units.items()
        }

    def rows(self, name: str) -> list[Row]:
        """A row of the report's `sensitivity` for each unit of the graph `name`."""
        run, graph = self._run, self._run.plan(name)
        assert graph.source is not None
        after = [f"graph/{graph.source}", "images/ranking"]
        if graph.scheme is not None:
            after += self.prepare(name, NONE)
        if graph.half:
            run.ranges(name)
            after.append(f"ranges/{float_graph(name)}")
        if graph.has_stand_ins:
            run.graph(_EXACT)
            after.append(f"graph/{_EXACT}")

        def make(folder: Path) -> None:
            if graph.scheme is None:
                answers = self._simulation(folder)
                graphs = self._half_graphs(name, answers)
            else:
                answers = self._runner(SENSITIVITY_IMAGES)
                graphs = self._int8_graphs(name, answers)
            with run.progress.step(f"measuring sensitivity of '{name}'"):
                rows = measure(graphs, answers)
            (folder / "sensitivity.json").write_text(json.dumps(rows))

        inputs = {"threads": run.options.thread_count, "images": SENSITIVITY_IMAGES}
        folder = run.stages.run(f"sensitivity/{name}", inputs, make, after)
        return json.loads((folder / "sensitivity.json").read_text())

    def _int8_graphs(
        self, name: str, answers: Callable[[onnx.ModelProto], Array]
    ) -> Iterator[tuple[Row, onnx.ModelProto, Array]]:
        """Each unit, the graph with it alone in INT8, and the logits of the graph without."""
        from quantize.graft import restore_gelu, stand_ins
        from quantize.qdq import int8_units

        source, scheme = self._recipe(name)
        units = {
            unit: {"recipe": scheme.name, "unit": unit, "layers": size.layers, "macs": size.macs}
            for unit, size in int8_units(self._load(source), scheme).items()
        }
        yield from self._alone(name, answers, units)
        # What has learned along with its stand-ins is not what GELU's weights are for.
        if GRAPHS[name].has_stand_ins and self._learned(scheme) is None:
            exact, model = (self._load_single(graph) for graph in (_EXACT, source))
            reference, fitted = answers(exact), stand_ins(model)
            for unit in fitted:
                row = {"recipe": scheme.name, "unit": unit, "layers": 0, "macs": 0}
                yield row, restore_gelu(model, exact, set(fitted) - {unit}), reference

    def _alone(
        self, name: str, answers: Callable[[onnx.ModelProto], Array], rows: dict[str, Row]
    ) -> Iterator[tuple[Row, onnx.ModelProto, Array]]:
        """The row of each part, the graph with it alone in INT8, and the logits without.

        Args:
            rows: by part, a unit or a layer; together they are all that the recipe quantises.
        """
        from quantize.qdq import insert_qdq

        source, scheme = self._recipe(name)
        (method, rounded), histograms = self._choice(name), self._histograms(source, scheme)
        model = self._load_single(source)
        reference = answers(model)
        for part, row in rows.items():
            others = rows.keys() - {part}
            graph = insert_qdq(
                model, histograms, scheme, method=method, keep_float=others, rounded=rounded
            )
            yield row, graph, reference

    def _half_graphs(
        self, name: str, answers: Callable[[onnx.ModelProto], Array]
    ) -> Iterator[tuple[Row, onnx.ModelProto, Array]]:
        from export.half import to_fp16
        from quantize.qdq import all_units

        source = self._run.plan(name).source
        assert source is not None
        model = self._load(source)
        reference, units = answers(model), all_units(model)
        for unit, size in units.items():
            row = {"recipe": "fp16", "unit": unit, "layers": size.layers, "macs": size.macs}
            yield row, to_fp16(model, self._run.ranges(name), units.keys() - {unit}), reference

    def _simulation(self, folder: Path) -> Callable[[onnx.ModelProto], Array]:
        """What runs a graph with the rounding that its types ask for."""
        import onnx

        run = self._run
        images, path = run.images["ranking"], folder / "graph.onnx"
        places = spread(len(images), SENSITIVITY_IMAGES)

        def answers(model: onnx.ModelProto) -> Array:
            onnx.save(model, path)
            runner = LOADERS[SIMULATED](path, run.options.thread_count)
            path.unlink()
            batches = images.batches(run.options.batch, places)
            return run_all(runner, batches, len(places), lambda _: None)[0]

        return answers


_PLAIN = "simplified"
"""The graph of the network that was given."""
_EXACT = "rewritten-simplified"
"""The graph that stand-ins were fitted to."""


def _restored(scheme: Scheme, units: Units) -> bool:
    """Whether some stand-ins for GELU are among what goes back."""
    return scheme.name == OPENVINO and any(u.startswith("stand-ins") for u in units)


def _sample(images: PreparedImages) -> np.ndarray:
    return np.asarray(images.pixels[spread(len(images), _SAMPLED)])


def narrowed_graph(candidate: Candidate) -> str | None:
    """The graph of a candidate whose units can go back; None where no graph decides."""
    name = candidate.target.graphs[candidate.precision]
    source = GRAPHS[name].source
    if source is not None and GRAPHS[source].narrows:
        return source
    return name if GRAPHS[name].narrows else None
