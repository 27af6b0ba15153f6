"""What a run narrows to INT8 and FP16: ranges, what each unit costs, which go back to float.

Choices are made on held-out calibration images, never on validation ones, which only confirm.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calib_data.prepared import PreparedImages, spread
from calib_data.shift import distance
from export.candidates import GRAPHS, Candidate
from measure.latency import ROUNDS, measure_alternately
from measure.runners import LOADERS, SIMULATED, run_all
from measure.statistics import compare, paired_ratio
from measure.tune import PRECISION
from quantize.gate import Lever, Search, Units, by_gain, pareto
from quantize.ranges import METHODS, MSE, Histogram, load_histograms, save_histograms
from quantize.recipe import OPENVINO, SCHEMES
from quantize.sensitivity import Array, answers_changed, errors, measure, relative_error, run_on

if TYPE_CHECKING:
    import onnx

    from export.pipeline import Run

NONE: Units = frozenset()
ARITHMETIC = "float arithmetic"
"""The unit of BF16 where a file says float; back to float32, it costs every operator of it."""
SUFFIX = "~"
SENSITIVITY_IMAGES = 16
"""Held-out images for the errors of units and of methods: enough for decibels, which average over
all logits; the gate counts changed answers on all of them."""
TIMED_UNITS = 8
"""The units with the largest errors, whose time in float is taken before the gate chooses."""
FEW_IMAGES = 128
FAR = 0.5
"""Standard deviations between calibration and validation images, see docs/accuracy.md."""
OUTSIDE = 1e-5
"""Share of values beyond all that calibration met, mean over tensors, see there."""
OUTSIDE_IMAGES = 32
_SAMPLED = 256
_TIMING_SECONDS = 1.0
_RUN_BATCH = 8

Row = dict[str, Any]


def suffix(units: Units) -> str:
    """What tells the stages of a file with these units in float from others of its name."""
    content = json.dumps(sorted(units)).encode()
    return f"{SUFFIX}{hashlib.sha256(content).hexdigest()[:12]}" if units else ""


class Narrowing:
    """The part of a run that decides on precision.

    Attributes:
        calibration: how each recipe's ranges were chosen, the report's `calibration`.
        sensitivity: rows of the report's `sensitivity`; None where it was not measured.
        fallbacks: what the gate tried for each file that exceeded `--max-drop`.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.calibration: list[Row] = []
        self.sensitivity: list[Row] | None = None
        self.fallbacks: list[Row] = []

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

    # INT8 graphs

    def prepare(self, name: str, units: Units) -> list[str]:
        """Make the stages that the Q/DQ graph `name` is made from; returns their names."""
        graph = self._run.plan(name)
        assert graph.source is not None
        stages = [f"calibration/{graph.source}", f"method/{name}"]
        self._histograms(graph.source, name)
        self._method(name)
        if self._restored(name, units):
            self._histograms(_EXACT, name)
            stages += [f"graph/{_EXACT}", f"calibration/{_EXACT}"]
        return stages

    def quantise(self, name: str, model: onnx.ModelProto, units: Units) -> onnx.ModelProto:
        """The Q/DQ graph `name` from its source, with these units left float."""
        from quantize.graft import PREFIX, restore_gelu
        from quantize.qdq import insert_qdq

        graph = self._run.plan(name)
        assert graph.source is not None
        assert graph.scheme is not None
        histograms = self._histograms(graph.source, name)
        if self._restored(name, units):
            model = restore_gelu(model, self._load(_EXACT), units)
            exact = self._histograms(_EXACT, name)
            histograms |= {PREFIX + tensor: values for tensor, values in exact.items()}
        method = self._method(name)
        scheme = SCHEMES[graph.scheme]
        return insert_qdq(model, histograms, scheme, method=method, keep_float=units)

    def _restored(self, name: str, units: Units) -> bool:
        return GRAPHS[name].scheme == OPENVINO and any(u.startswith("stand-ins") for u in units)

    def _load(self, graph: str, any_batch: bool = False) -> onnx.ModelProto:
        import onnx

        from export.onnx_graph import free_batch

        model = onnx.load(self._run.graph(graph))
        if any_batch:
            free_batch(model)
        return model

    def _histograms(self, source: str, name: str) -> dict[str, Histogram]:
        """What the tensors of the float graph `source` take on, for the Q/DQ graph `name`."""
        run, scheme = self._run, GRAPHS[name].scheme
        images = run.calibration
        assert images is not None
        assert scheme is not None
        model = self._load(source)

        def make(folder: Path) -> None:
            from quantize.qdq import observe

            with run.progress.task("calibrating", len(images)) as advance:
                batches = images.batches(run.options.batch)
                histograms = observe(model, batches, SCHEMES[scheme], advance)
            save_histograms(histograms, folder / "histograms.npz")

        inputs = {"scheme": scheme, "batch": run.options.batch}
        after = [f"graph/{source}", "images/calibration"]
        folder = run.stages.run(f"calibration/{source}", inputs, make, after)
        return load_histograms(folder / "histograms.npz")

    def _method(self, name: str) -> str:
        """How the ranges of the Q/DQ graph `name` are chosen: what has the least error."""
        run, graph = self._run, self._run.plan(name)
        assert graph.source is not None
        assert graph.scheme is not None
        if run.options.output == "features":
            return MSE
        source, scheme = graph.source, SCHEMES[graph.scheme]

        def make(folder: Path) -> None:
            from quantize.qdq import insert_qdq

            answers = self._runner()
            histograms, model = self._histograms(source, name), self._load(source, any_batch=True)
            with run.progress.task("choosing ranges", len(METHODS)) as advance:
                reference = answers(model)
                rows = []
                for method in METHODS:
                    logits = answers(insert_qdq(model, histograms, scheme, method=method))
                    rows.append({"method": method, **errors(logits, reference)})
                    advance(1)
            best = max(rows, key=lambda row: -np.inf if row["sqnr_db"] is None else row["sqnr_db"])
            content = {"recipe": scheme.name, "chosen": best["method"], "methods": rows}
            (folder / "method.json").write_text(json.dumps({**content, "images": len(reference)}))

        after = [f"calibration/{source}", "images/ranking"]
        inputs = {"threads": run.options.thread_count, "images": SENSITIVITY_IMAGES}
        folder = run.stages.run(f"method/{name}", inputs, make, after)
        row = json.loads((folder / "method.json").read_text())
        if row not in self.calibration:
            self.calibration.append(row)
        return row["chosen"]

    def _runner(self) -> Callable[[onnx.ModelProto], Array]:
        images = self._run.images["ranking"]
        places = spread(len(images), SENSITIVITY_IMAGES)
        batches = images.batches(_RUN_BATCH, places)
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
                f"{FEW_IMAGES} or more"
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
        for graph in dict.fromkeys(c.target.graphs[c.precision] for c in run.candidates):
            name = _int8_graph(graph)
            if name is not None:
                outside = self._outside(name)
                if outside > OUTSIDE:
                    lines.append(
                        f"{1e6 * outside:.0f} in a million values that INT8 layers are given on "
                        f"validation images are beyond anything met in calibration "
                        f"({1e6 * OUTSIDE:.0f} are accepted, {GRAPHS[name].scheme} recipe): give "
                        "more images, of the kind that the network will see"
                    )
        return lines

    def _outside(self, name: str) -> float:
        """The share of validation activations outside all that calibration met, tensors alike."""
        run, graph = self._run, self._run.plan(name)
        assert graph.source is not None
        assert graph.scheme is not None
        source, scheme = graph.source, SCHEMES[graph.scheme]
        histograms, model = self._histograms(source, name), self._load(source)
        places = spread(len(run.validation), OUTSIDE_IMAGES)

        def make(folder: Path) -> None:
            from quantize.qdq import observe

            batches = run.validation.batches(run.options.batch, places)
            met = observe(model, batches, scheme)
            shares = [
                met[tensor].share_outside(values.levels(scheme.asymmetric, "minmax"))
                for tensor, values in histograms.items()
            ]
            (folder / "outside.json").write_text(json.dumps(float(np.mean(shares))))

        inputs = {"batch": run.options.batch, "images": len(places)}
        after = [f"calibration/{source}", "images/validation"]
        folder = run.stages.run(f"outside/{name}", inputs, make, after)
        return json.loads((folder / "outside.json").read_text())

    # Sensitivity

    def finish(self, candidates: Sequence[Candidate]) -> None:
        """Measure what the report says of every INT8 recipe in the run, if asked for."""
        if self.no_sensitivity is not None:
            return
        names = dict.fromkeys(_narrowed_graph(c) for c in candidates if c.precision == "int8")
        rows = [row for name in names if name is not None for row in self._sensitivity(name)]
        self.sensitivity = sorted(rows, key=lambda row: row["sqnr_db"] or -np.inf)

    def _sensitivity(self, name: str) -> list[Row]:
        """A row for each unit of the graph `name`: INT8, or `half`."""
        run, graph = self._run, self._run.plan(name)
        assert graph.source is not None
        after = [f"graph/{graph.source}", "images/ranking"]
        if graph.scheme is not None:
            after += self.prepare(name, NONE)
        if graph.fitted_source:
            run.graph(_EXACT)
            after.append(f"graph/{_EXACT}")

        def make(folder: Path) -> None:
            if graph.scheme is None:
                answers = self._simulation(folder)
                graphs = self._half_graphs(name, answers)
            else:
                answers = self._runner()
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
        from quantize.qdq import insert_qdq, int8_units

        graph = self._run.plan(name)
        assert graph.source is not None
        assert graph.scheme is not None
        scheme, method = SCHEMES[graph.scheme], self._method(name)
        histograms, model = self._histograms(graph.source, name), self._load(graph.source, True)
        units = int8_units(self._load(graph.source), scheme)
        reference = answers(model)
        for unit, size in units.items():
            row = {"recipe": scheme.name, "unit": unit, "layers": size.layers, "macs": size.macs}
            others = units.keys() - {unit}
            yield (
                row,
                insert_qdq(model, histograms, scheme, method=method, keep_float=others),
                reference,
            )
        if graph.fitted_source:
            exact = self._load(_EXACT, any_batch=True)
            reference, fitted = answers(exact), stand_ins(model)
            for unit in fitted:
                row = {"recipe": scheme.name, "unit": unit, "layers": 0, "macs": 0}
                yield row, restore_gelu(model, exact, set(fitted) - {unit}), reference

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
            yield row, to_fp16(model, self._run.ranges(), units.keys() - {unit}), reference

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

    # The gate

    def units_in_float(self, candidate: Candidate, reference: Path) -> Units:
        """The units that the candidate needs in float to keep `--max-drop`, or does best with."""
        run, options = self._run, self._run.options
        start = self._drop(candidate, NONE)
        if start is None or start <= options.max_drop or not options.gate_minutes:
            return NONE
        if candidate.precision == "fp32":
            return NONE  # nothing of it is narrow
        if "ranking" not in run.images:
            run.inputs.warnings.append(
                f"{candidate.name} exceeds --max-drop, and there are no images to choose on what "
                "goes back to float: give --calib-data"
            )
            return NONE
        expected = run.outputs("torch", "torch", reference, "reference", on="ranking")[0]

        def changed(units: Units) -> float:
            return answers_changed(
                run.candidate_outputs(candidate, units, on="ranking")[0], expected
            )

        levers, cost = self._levers(candidate, expected)
        if not levers:
            return NONE
        search = Search(
            order=by_gain(levers),
            # All units of a graph in float would be another precision's file.
            most=max(len(levers) - 1, 1),
            changed=changed,
            drop=lambda units: self._drop(candidate, units) or 0.0,
            limit=options.max_drop,
            seconds=60 * options.gate_minutes,
            tried={NONE: changed(NONE)},
        )
        met = search.run()
        units = search.best(start) if met is None else met
        self.fallbacks.append(
            {
                "target": candidate.target.name,
                "precision": candidate.precision,
                "met": met is not None,
                "out_of_time": search.out_of_time,
                "ranking_images": len(expected),
                "cost": cost,
                "layers": sum(lever.layers for lever in levers.values()),
                "points": self._points(candidate, levers, search, start, units),
            }
        )
        return units

    def _drop(self, candidate: Candidate, units: Units) -> float | None:
        """Points of top-1 on the validation images; infinite where answers are no numbers."""
        run = self._run
        logits = run.candidate_outputs(candidate, units)[0]
        if run.inputs.not_labelled is not None:
            return None
        if not np.isfinite(logits).all():
            return float("inf")
        labels = run.validation.labels
        assert labels is not None
        return compare(logits, run.reference[0], labels).drop_pp

    def _levers(self, candidate: Candidate, expected: Array) -> tuple[dict[str, Lever], str]:
        """The candidate's units, and what their cost is."""
        name, rows = _narrowed_graph(candidate), []
        if name is not None:
            rows = self._sensitivity(name)
        found = {
            row["unit"]: (
                np.inf if row["sqnr_db"] is None else 10 ** (-row["sqnr_db"] / 10),
                row["layers"],
                row["macs"],
            )
            for row in rows
        }
        if self._in_bf16(candidate):
            half = Candidate(candidate.target, "fp16")
            logits = self._run.candidate_outputs(half, on="ranking")[0]
            found[ARITHMETIC] = (relative_error(logits, expected), 0, 0)
        total = sum(macs for _, _, macs in found.values()) or 1
        not_timed = candidate.target.not_timed
        if not_timed is not None:
            cost = f"share of multiply-adds: {not_timed()}"
            return {u: Lever(e, macs / total, n) for u, (e, n, macs) in found.items()}, cost
        worst = sorted(found, key=lambda unit: -found[unit][0])[:TIMED_UNITS]
        times = self._slowdowns(candidate, [frozenset({unit}) for unit in worst])
        lost = {unit: time - 1 for unit, time in zip(worst, times, strict=True)}
        cost = f"measured time; {len(found) - len(worst)} units of small error by multiply-adds"
        return {
            u: Lever(e, lost.get(u, macs / total), n) for u, (e, n, macs) in found.items()
        }, cost

    def _in_bf16(self, candidate: Candidate) -> bool:
        if candidate.target.runs_graph:
            return False
        built = json.loads((self._run.build(candidate) / "built.json").read_text())
        return built.get("settings", {}).get(PRECISION) == "bf16"

    def _slowdowns(self, candidate: Candidate, choices: Sequence[Units]) -> list[float]:
        """How many times as long the file takes with these units in float, in one alternation."""
        run = self._run
        places = [run.evaluated_file(candidate, units) for units in [NONE, *choices]]
        files = {str(i): (candidate.target.runtime, path) for i, (path, _) in enumerate(places)}
        settings = {
            str(i): json.loads((path.parent / "built.json").read_text()).get("settings", {})
            for i, (path, _) in enumerate(places)
        }

        def make(folder: Path) -> None:
            title = f"timing {len(choices)} choices for {candidate.name}"
            with run.progress.task(title, ROUNDS) as advance:
                timings = measure_alternately(
                    files,
                    run.fed.batch(run.options.batch),
                    run.options.thread_count,
                    _TIMING_SECONDS,
                    advance,
                    settings,
                )
            medians = [[float(np.median(ms)) for ms in t.rounds] for t in timings.values()]
            ratios = [paired_ratio(medians[0], other)["median"] for other in medians[1:]]
            (folder / "slowdowns.json").write_text(json.dumps(ratios))

        key = hashlib.sha256(json.dumps([sorted(c) for c in choices]).encode()).hexdigest()[:12]
        after = ["images/validation", *dict.fromkeys(stage for _, stage in places)]
        inputs = {"threads": run.options.thread_count, "seconds": _TIMING_SECONDS}
        stage = f"{candidate.name}.slowdowns{SUFFIX}{key}"
        folder = run.stages.run(stage, inputs, make, after)
        return json.loads((folder / "slowdowns.json").read_text())

    def _points(
        self,
        candidate: Candidate,
        levers: dict[str, Lever],
        search: Search,
        start: float,
        chosen: Units,
    ) -> list[Row]:
        """A row for each choice that was tried, the first one with nothing in float."""
        tried = list(search.tried)
        timed = candidate.target.not_timed is None
        others = self._slowdowns(candidate, tried[1:]) if timed and tried[1:] else []
        slowdowns = [1.0, *others] if timed else [None] * len(tried)
        drops = {NONE: start, **search.confirmed}
        rows: list[Row] = []
        for units, slowdown in zip(tried, slowdowns, strict=True):
            path, _ = self._run.evaluated_file(candidate, units)
            drop = drops.get(units)
            rows.append(
                {
                    "float": sorted(units),
                    "float_layers": sum(levers[unit].layers for unit in units),
                    "changed": search.tried[units],
                    "drop_pp": drop if drop is None or np.isfinite(drop) else None,
                    "slowdown": slowdown,
                    "bytes": sum(
                        file.stat().st_size
                        for file in path.parent.iterdir()
                        if file.stem == path.stem
                    ),
                    "chosen": units == chosen,
                }
            )
        best = pareto([(r["changed"], r["slowdown"] if timed else r["bytes"]) for r in rows])
        return [{**row, "pareto": on} for row, on in zip(rows, best, strict=True)]


_EXACT = "rewritten-simplified"
"""The graph that stand-ins were fitted to."""


def _sample(images: PreparedImages) -> np.ndarray:
    return np.asarray(images.pixels[spread(len(images), _SAMPLED)])


def _int8_graph(graph: str | None) -> str | None:
    """The Q/DQ graph that a graph is, or is made from; None where there is none."""
    while graph is not None and GRAPHS[graph].scheme is None:
        graph = GRAPHS[graph].source
    return graph


def _narrowed_graph(candidate: Candidate) -> str | None:
    """The graph of a candidate whose units can go back; None where no graph decides."""
    name = candidate.target.graphs[candidate.precision]
    source = GRAPHS[name].source
    if source is not None and GRAPHS[source].narrows:
        return source
    return name if GRAPHS[name].narrows else None
