"""The INT8 recipe from float graph to Q/DQ graph in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx
from numpy.typing import NDArray

from cmt.quantize.qdq import insert_qdq, observe
from cmt.quantize.recipe import Recipe


def quantize_onnx(
    model: onnx.ModelProto,
    batches: Iterable[NDArray],
    recipe: Recipe,
    *,
    progress: Callable[[int], None] | None = None,
) -> onnx.ModelProto:
    """`model` quantised with ranges from these batches, by the default method."""
    return insert_qdq(model, observe(model, batches, recipe, progress), recipe)
