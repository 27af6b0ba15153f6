"""What each part of the network loses by itself in INT8, measured on images.

Run by ONNX Runtime, rounded as written and computed in float32, on the graphs that the targets'
files are built from: near enough to order parts and methods; files themselves are judged as they
run. A unit is a role of the recipe in one stage; the rest of the graph is float, so errors belong
to the unit alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from cmt.quantize.error_row import Errors
from cmt.targets.onnxruntime import run_each

Array = NDArray[np.float32]
Run = Callable[[onnx.ModelProto], Array]
"""The logits (images, classes) of a graph."""


def run_on(images: Iterable[Array], count: int, threads: int) -> Run:
    """What runs a graph whose batch is a symbol on these images with ONNX Runtime.

    Args:
        images: batches (B, 3, H, W) of one size; whatever fills up the last one is left out.
        count: of all images.
    """
    batches = list(images)

    def run(model: onnx.ModelProto) -> Array:
        answers = run_each(model.SerializeToString(), None, batches, threads)
        return np.concatenate([logits for _, (logits,) in answers])[:count]

    return run


def relative_error(logits: Array, reference: Array) -> float:
    """Power of the difference over the power of the reference; infinite where one is no number."""
    if not np.isfinite(logits).all():
        return float("inf")
    difference = logits.astype(np.float64) - reference
    return float(np.square(difference).sum() / np.square(reference.astype(np.float64)).sum())


def answers_changed(logits: Array, reference: Array) -> float:
    """The share of images, 0 to 1, whose first answer is another one or no number."""
    broken = ~np.isfinite(logits).all(1)
    return float(((logits.argmax(1) != reference.argmax(1)) | broken).mean())


def errors(logits: Array, reference: Array) -> Errors:
    """`sqnr_db` and `kl` of the softmax (None beyond all bounds), and `changed`.

    Args:
        logits, reference: (images, classes).
    """
    error = relative_error(logits, reference)
    finite = np.isfinite(error)
    p, q = _log_softmax(reference), _log_softmax(logits)
    return {
        # Beyond 120 dB, float32 itself is the noise.
        "sqnr_db": -10 * float(np.log10(max(error, 1e-12))) if finite else None,
        "kl": float((np.exp(p) * (p - q)).sum(1).mean()) if finite else None,
        "changed": answers_changed(logits, reference),
    }


def worst_first(row: Errors) -> float:
    """The key that sorts rows of `errors`: decibels, none at all below all."""
    return -np.inf if row["sqnr_db"] is None else row["sqnr_db"]


def _log_softmax(logits: Array) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def measure(
    graphs: Iterable[tuple[Mapping[str, object], onnx.ModelProto, Array]],
    run: Run,
    progress: Callable[[int], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """A row for each part of the network, the one with the largest error first.

    Args:
        graphs: what says which part it is, the graph with only this part narrowed, and the
            logits of the same graph without.
        progress: called with 1 after each.
    """
    rows: list[Any] = []
    for part, graph, reference in graphs:
        rows.append({**part, **errors(run(graph), reference), "images": len(reference)})
        progress(1)
    return sorted(rows, key=worst_first)
