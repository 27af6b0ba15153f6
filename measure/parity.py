"""Comparing a stage's outputs with the reference network's on real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from cmt.errors import GateError
from cmt.report.rows import Parity

Outputs = Sequence[NDArray[np.float32]]


@dataclass(frozen=True)
class Tolerance:
    """What an arrow of the pipeline may change; None is not checked.

    Attributes:
        max_rel: largest absolute difference over the largest absolute reference value.
        cosine: smallest cosine similarity of all images' outputs, each flattened.
    """

    max_rel: float | None = None
    cosine: float | None = None


# One entry per precision. Float32 graphs differ from torch by the order of additions alone;
# measured on ti..b with both families: below 2e-6. FP16 keeps 11 bits. INT8's own gate is
# accuracy; this one catches broken graphs.
TOLERANCES = {
    "fp32": Tolerance(max_rel=1e-4),
    "fp16": Tolerance(max_rel=5e-2, cosine=0.999),
    "int8": Tolerance(cosine=0.9),
}


# Of CMT-Ti on all 10,000 bundled images, the worst in BF16 had 0.073 and 0.9971, so that one in
# nine samples of 32 would break the limits for FP16.
_BF16 = Tolerance(max_rel=0.15, cosine=0.99)
"""For fp16 files that are computed in BF16, which keeps 8 bits."""


def tolerance_for(precision: str, arithmetic: str | None = None) -> Tolerance:
    """What a file may change.

    Args:
        precision: of the file, one of `PRECISIONS`.
        arithmetic: that it is run in where that is another, such as `bf16`.
    """
    return _BF16 if (precision, arithmetic) == ("fp16", "bf16") else TOLERANCES[precision]


def compare_outputs(
    stage: str, outputs: Outputs, reference: Outputs, tolerance: Tolerance
) -> Parity:
    """One row of the report's `parity`: the worst figure over all outputs.

    Args:
        stage: name of the arrow's end, such as `onnx` or `openvino/int8`.
        outputs, reference: one array (images, ...) per output of the network.
    """
    differences = [
        np.abs(ours.astype(np.float64) - theirs)
        for ours, theirs in zip(outputs, reference, strict=True)
    ]
    max_abs = max(float(difference.max()) for difference in differences)
    max_rel = max(
        float(difference.max() / max(float(np.abs(theirs).max()), 1e-30))
        for difference, theirs in zip(differences, reference, strict=True)
    )
    cosine = min(_cosine(a, b) for a, b in zip(outputs, reference, strict=True))
    is_logits = len(reference) == 1 and reference[0].ndim == 2
    agreement = (
        float((outputs[0].argmax(1) == reference[0].argmax(1)).mean()) if is_logits else None
    )
    # A NaN makes every comparison false, so the checks are phrased to fail on it.
    passed = (
        (tolerance.max_rel is None or max_rel <= tolerance.max_rel)
        and (tolerance.cosine is None or cosine >= tolerance.cosine)
        and all(bool(np.isfinite(ours).all()) for ours in outputs)
    )
    return {
        "stage": stage,
        "images": len(reference[0]),
        "max_abs": max_abs,
        "max_rel": max_rel,
        "cosine": cosine,
        "top1_agreement": agreement,
        "tolerance": {k: v for k, v in asdict(tolerance).items() if v is not None},
        "passed": passed,
    }


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    x = a.reshape(len(a), -1).astype(np.float64)
    y = b.reshape(len(b), -1).astype(np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return float(((x * y).sum(1) / np.maximum(norms, 1e-30)).min())


def require(row: Parity) -> None:
    """Raise GateError that names the arrow unless the parity row passed."""
    if not row["passed"]:
        raise GateError(
            f"parity failed at '{row['stage']}': max_rel {row['max_rel']:.3g}, cosine "
            f"{row['cosine']:.5f} on {row['images']} images, tolerance {row['tolerance']}; "
            "the file of this stage does not compute what the torch network computes"
        )
