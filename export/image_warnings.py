"""What speaks against the calibration images of a run, a line each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cmt.calib_data.prepared import PreparedImages, spread
from cmt.calib_data.shift import distance
from cmt.export.calibration import Source, calibration_stage, histograms_of
from cmt.export.context import Context
from cmt.quantize.recipe import EXPLICIT, OPENVINO, TENSOR_CORES

FEW_IMAGES = 128
"""Fewer that set ranges are warned of."""
ENOUGH_IMAGES = 4 * FEW_IMAGES // 3 + 1
"""Leave that many when a quarter is held out."""
FAR = 0.5
"""Standard deviations between calibration and validation images that are accepted."""
OUTSIDE = {OPENVINO: 1e-5, EXPLICIT: 1e-3, TENSOR_CORES: 1e-3}
"""Share of values beyond all that calibration met, mean over tensors, that is accepted. By recipe:
where channels are of one size, any of them can pass what was met, not only the largest."""
OUTSIDE_IMAGES = 32
_SAMPLED = 256


def image_warnings(context: Context, sources: Mapping[str, Source]) -> list[str]:
    """The lines for a run that makes these Q/DQ graphs.

    Args:
        sources: by Q/DQ graph, what it is made from.
    """
    images = context.images.calibration
    if images is None or not sources:
        return []
    lines = few_images(len(images))
    if context.inputs.not_labelled is not None:  # what validates is of no certain kind
        return lines
    lines += unlike(*distance(_sample(images), _sample(context.images.validation)))
    for name, source in sources.items():
        lines += beyond(_share_outside(context, name, source), source.recipe.name)
    return lines


def few_images(count: int) -> list[str]:
    """A warning of so few images that set ranges."""
    if count >= FEW_IMAGES:
        return []
    return [
        f"{count} calibration images are few, and the ranges hang on which: give "
        f"{ENOUGH_IMAGES} or more, of which a quarter sets no ranges"
    ]


def unlike(far: float, feature: str) -> list[str]:
    """A warning of images that are this many standard deviations away, by this feature."""
    if far <= FAR:
        return []
    return [
        "calibration images are unlike the validation images: their mean "
        f"{feature} is {far:.1f} standard deviations away ({FAR:g} is accepted); "
        "give images of the kind that the network will see"
    ]


def beyond(outside: float, recipe: str) -> list[str]:
    """A warning of this share of values, 0 to 1, that calibration has not met."""
    accepted = OUTSIDE[recipe]
    if outside <= accepted:
        return []
    return [
        f"{1e6 * outside:,.1f} in a million values that INT8 layers are given on "
        f"validation images are beyond anything met in calibration "
        f"({1e6 * accepted:,.0f} are accepted, {recipe} recipe): give "
        "more images, of the kind that the network will see"
    ]


def _share_outside(context: Context, name: str, source: Source) -> float:
    """The share of validation activations outside all that calibration met, tensors alike."""
    validation = context.images.validation
    places = spread(len(validation), OUTSIDE_IMAGES)

    def make(folder: Path) -> None:
        from cmt.quantize.qdq import observe

        recipe, batches = source.recipe, validation.batches(1, places)
        met = observe(source.load(), batches, recipe, threads=context.threads)
        shares = [
            met[tensor].share_outside(values.levels(recipe.asymmetric, "minmax"))
            for tensor, values in histograms_of(context, source).items()
        ]
        (folder / "outside.json").write_text(json.dumps(float(np.mean(shares))))

    inputs = {"images": len(places), "threads": context.threads}
    after = [calibration_stage(source.name), "images/validation"]
    folder = context.stages.run(f"outside/{name}", inputs, make, after)
    return json.loads((folder / "outside.json").read_text())


def _sample(images: PreparedImages) -> np.ndarray:
    return np.asarray(images.pixels[spread(len(images), _SAMPLED)])
