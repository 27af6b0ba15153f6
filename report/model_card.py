"""The report's figures as a model card, for the bundle's bill of materials (CycloneDX 1.6)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from cmt.report.rows import Images, Report, Row

_Z95 = 1.959964
"""Standard deviations to either side of 95 % of a normal distribution."""


def model_card(report: Report, labels: Sequence[str]) -> dict[str, Any]:
    """What the network is for, what it was measured on, how well it did, and what is not known.

    Holds no times, so that the same run makes the same file.

    Args:
        labels: of the classes; empty where they have no names.
    """
    size = "x".join(map(str, report["img_size"]))
    is_classifier = report["output"] == "logits"
    rows = [report["baseline"], *report["results"]]
    metrics = [metric for row in rows for metric in _metrics(row)]
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "image classification" if is_classifier else "feature extraction",
            "architectureFamily": "CMT: convolutional neural network and vision transformer",
            "modelArchitecture": f"CMT-{report['variant']}, layout {report['family']}",
            "datasets": list(_datasets(report["images"])),
            "inputs": [{"format": f"image, {size} pixels (height x width), red first"}],
            "outputs": [{"format": "class logits" if is_classifier else "four feature maps"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        "considerations": {
            "useCases": [_use(is_classifier, labels)],
            "technicalLimitations": list(_limits(report, rows)),
        },
    }


def _use(is_classifier: bool, labels: Sequence[str]) -> str:
    if not is_classifier:
        return "Feature maps of an image, for a detector or a segmentation head"
    named = f"one of the {len(labels)} classes that manifest.json lists" if labels else "a class"
    return f"Telling which of its classes an image shows: {named}"


def _datasets(images: Images) -> Iterator[dict[str, Any]]:
    """The images behind the figures and the INT8 ranges."""
    used = (
        ("validation", images["validation"], images["source"], images["validation_sha256"]),
        (
            "calibration",
            images["calibration"],
            images["calibration_source"],
            images["calibration_sha256"],
        ),
    )
    for name, count, source, digest in used:
        if count:
            properties = [] if digest is None else [{"name": "sha256", "value": digest}]
            yield {
                "type": "dataset",
                "name": name,
                "description": f"{count} images of {source}",
                **({"contents": {"properties": properties}} if properties else {}),
            }


def _named(row: Row) -> str:
    how = ", simulated" if row["simulated"] else ""
    return f"{row['target']} {row['precision']}{how}"


def _metrics(row: Row) -> Iterator[dict[str, Any]]:
    """Top-1, top-5 and what a file loses against the network in torch, with 95 % intervals."""
    accuracy = row["accuracy"]
    if accuracy is None:
        return
    where = f"{_named(row)}, {accuracy['images']} images"
    for name, value in (("top-1", accuracy["top1"]), ("top-5", accuracy["top5"])):
        low, high = _wilson(value / 100, accuracy["images"])
        yield _metric(f"{name} accuracy, percent", value, 100 * low, 100 * high, where)
    drop, interval = accuracy["drop_pp"], accuracy["drop_ci95"]
    if row["artefact"] is not None and drop is not None and interval is not None:
        kind = "top-1 drop against the network in torch, points"
        yield _metric(kind, drop, interval[0], interval[1], where)


def _metric(kind: str, value: float, low: float, high: float, where: str) -> dict[str, Any]:
    bounds = {"lowerBound": f"{low:.4f}", "upperBound": f"{high:.4f}"}
    return {"type": kind, "value": f"{value:.4f}", "slice": where, "confidenceInterval": bounds}


def _wilson(share: float, count: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    spread = _Z95 * math.sqrt(share * (1 - share) / count + (_Z95 / (2 * count)) ** 2)
    middle, size = share + _Z95**2 / (2 * count), 1 + _Z95**2 / count
    return (middle - spread) / size, (middle + spread) / size


def _limits(report: Report, rows: Sequence[Row]) -> Iterator[str]:
    """What the figures do not cover, and what the run warned of."""
    yield "What the weights were trained on is not described here."
    source = report["images"]["source"]
    yield f"Measured on images of {source} alone; of others, nothing is known."
    for row in rows:
        if row["simulated"]:
            yield f"{_named(row)}: answers of the same graph on a CPU, not of the file."
        if row["accuracy"] is None:
            yield f"{_named(row)}: accuracy not measured: {row['reasons']['accuracy']}"
    gates = report["gates"]
    yield from report["warnings"]
    yield from (f"gate failed: {line}" for line in gates["failures"])
    yield from (f"not confirmed: {line}" for line in gates.get("unconfirmed", []))
