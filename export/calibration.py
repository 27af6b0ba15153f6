"""Calibration of a run: what tensors take on, and how ranges and weights are chosen from it.

Choices are made on held-out calibration images, never on validation ones, which only confirm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cmt.calib_data.prepared import spread
from cmt.export.context import Context
from cmt.quantize.choice import choose
from cmt.quantize.ranges import METHODS, MSE, Histogram, load_histograms, save_histograms
from cmt.quantize.recipe import Recipe
from cmt.quantize.sensitivity import Array, errors, run_on, worst_first
from cmt.report.rows import Calibration, Method

if TYPE_CHECKING:
    import onnx

    from cmt.quantize.qdq import Rounded

METHOD_IMAGES = 64
"""Held-out images for the errors of methods, which lie closer together than those of units."""
RANGE_IMAGES = 64
"""For the largest magnitudes, which decide on FP32 islands."""
FITTED = ", weights fitted"
"""What the report says behind the method of choosing ranges where `quantize.gptq` helped."""
_ROUNDED = "rounded.npz"


@dataclass(frozen=True)
class Source:
    """The float graph that a Q/DQ graph is made from.

    Attributes:
        name: of the graph, and of its stage behind `graph/`.
    """

    name: str
    path: Path
    recipe: Recipe

    def load(self) -> onnx.ModelProto:
        """For one image at a time, so that what is found hangs on no batch."""
        return load_single(self.path)


@dataclass(frozen=True)
class RangeChoice:
    """How ranges are chosen, one of `METHODS`; the fitted weights by name; the report's row."""

    method: str = MSE
    rounded: Mapping[str, Rounded] | None = None
    row: Calibration | None = None


def load_single(path: Path) -> onnx.ModelProto:
    """A graph for one image at a time."""
    import onnx

    from cmt.targets.onnx_edit import set_batch

    model = onnx.load(path)
    if model.graph.input[0].type.tensor_type.shape.dim[0].dim_value > 1:
        set_batch(model, 1)
    return model


def answers_of(context: Context, count: int) -> Callable[[onnx.ModelProto], Array]:
    """What runs a graph on `count` held-out images."""
    images = context.images.held_out
    places = spread(len(images), count)
    return run_on(images.batches(1, places), len(places), context.threads)


def calibration_stage(source: str) -> str:
    """The stage of a float graph's histograms."""
    return f"calibration/{source}"


def calibrate(context: Context, source: Source) -> Path:
    """The file of what the tensors of a float graph take on that its recipe quantises."""
    images = context.images.setting_ranges

    def make(folder: Path) -> None:
        from cmt.quantize.qdq import observe

        with context.progress.task("calibrating", len(images)) as advance:
            histograms = observe(
                source.load(), images.batches(1), source.recipe, advance, context.threads
            )
        save_histograms(histograms, folder / "histograms.npz")

    inputs = {"recipe": source.recipe.name, "threads": context.threads}
    after = [f"graph/{source.name}", "images/calibration"]
    folder = context.stages.run(calibration_stage(source.name), inputs, make, after)
    return folder / "histograms.npz"


def histograms_of(context: Context, source: Source) -> dict[str, Histogram]:
    """What `calibrate` found."""
    return load_histograms(calibrate(context, source))


def choose_ranges(
    context: Context, name: str, source: Source, learned: str | None, plain: Source | None
) -> RangeChoice:
    """How the ranges of the Q/DQ graph `name` are chosen, and its fitted weights.

    What has the least error; none are fitted where that does no good. A fine-tuned network
    keeps the ranges and the nearest levels that it learned with; the error is then from the
    network given. Without logits there is nothing to choose by.

    Args:
        learned: the method that the network learned with; None for one that was not fine-tuned.
        plain: where it was, the graph of the network given.
    """
    calibrate(context, source)
    if context.options.output != "logits":
        return RangeChoice(learned or MSE)
    after = [calibration_stage(source.name), "images/calibration", "images/held-out"]
    if plain is not None:
        after.append(f"graph/{plain.name}")

    def make(folder: Path) -> None:
        row, rounded = _compare_methods(context, source, learned, plain)
        if rounded is not None:
            from cmt.quantize.gptq import save_rounded

            save_rounded(rounded, folder / _ROUNDED)
        (folder / "method.json").write_text(json.dumps(row))

    inputs = {"threads": context.threads, "images": METHOD_IMAGES}
    folder = context.stages.run(f"method/{name}", inputs, make, after)
    row = json.loads((folder / "method.json").read_text())
    return RangeChoice(row["chosen"].removesuffix(FITTED), _load_rounded(folder), row)


def _load_rounded(folder: Path) -> Mapping[str, Rounded] | None:
    from cmt.quantize.gptq import load_rounded

    return load_rounded(folder / _ROUNDED) if (folder / _ROUNDED).exists() else None


def _compare_methods(
    context: Context, source: Source, learned: str | None, plain: Source | None
) -> tuple[Calibration, dict[str, Rounded] | None]:
    """The report's row of a choice, and the fitted weights where these were chosen."""
    from cmt.quantize.qdq import insert_qdq

    answers, model = answers_of(context, METHOD_IMAGES), source.load()
    histograms = histograms_of(context, source)
    reference = answers(plain.load() if plain is not None else model)
    methods: Sequence[str] = [learned] if learned else METHODS
    rows: list[Method] = []

    def fit(chosen: Sequence[str]) -> dict[str, dict[str, Rounded]]:
        return _fit_weights(context, source, histograms, chosen)

    with context.progress.task("choosing ranges", len(methods)) as advance:

        def judge(method: str, rounded: dict[str, Rounded] | None) -> float:
            graph = insert_qdq(model, histograms, source.recipe, method=method, rounded=rounded)
            rows.append({"method": _title(method, rounded), **errors(answers(graph), reference)})
            advance(rounded is None)
            return -worst_first(rows[-1])

        choice = choose(methods, judge, None if learned else fit)
    return {
        "recipe": source.recipe.name,
        "chosen": _title(choice.method, choice.fitted),
        "methods": rows,
        "images": len(reference),
    }, choice.fitted


def _title(method: str, rounded: object) -> str:
    return method if rounded is None else method + FITTED


def _fit_weights(
    context: Context, source: Source, histograms: Mapping[str, Histogram], methods: Sequence[str]
) -> dict[str, dict[str, Rounded]]:
    """Of a float graph, for inputs with the ranges of these methods, by method."""
    from cmt.quantize.gptq import IMAGES, round_weights

    images = context.images.setting_ranges
    places = spread(len(images), IMAGES)
    with context.progress.task("fitting weights", len(places)) as advance:
        return round_weights(
            source.load(),
            images.batches(1, places),
            histograms,
            source.recipe,
            methods=methods,
            progress=advance,
            threads=context.threads,
        )


def largest_magnitudes(context: Context, name: str, path: Path) -> dict[str, float]:
    """The largest magnitude of each tensor of a float graph; what does not fit FP16 stays float32.

    From calibration images, or without any from a few validation images, whose labels play no part.

    Args:
        name: of the graph, and of its stage behind `graph/`.
    """
    images = context.images.calibration or context.images.validation
    which = "validation" if context.images.calibration is None else "calibration"
    count = min(RANGE_IMAGES, len(images))

    def make(folder: Path) -> None:
        import onnx

        from cmt.quantize.half import measure_ranges

        batches = images.batches(context.options.batch, spread(len(images), count))
        ranges = measure_ranges(onnx.load(path), batches, context.threads)
        (folder / "ranges.json").write_text(json.dumps(ranges))

    inputs = {"count": count, "threads": context.threads}
    after = [f"graph/{name}", f"images/{which}"]
    folder = context.stages.run(ranges_stage(name), inputs, make, after)
    return json.loads((folder / "ranges.json").read_text())


def ranges_stage(name: str) -> str:
    """The stage of a float graph's largest magnitudes."""
    return f"ranges/{name}"
