"""Accuracy on a device as the report's rows give it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from cmt.bundle.reader import OpenBundle
from cmt.calib_data.sources import ImageSource, load_as
from cmt.measure.changes import changes, class_names
from cmt.measure.on_device import UNKNOWN, Elsewhere, File, Seen, ask
from cmt.measure.statistics import Flags, paired_accuracy
from cmt.report.rows import (
    Accuracy,
    Answering,
    AskedImages,
    BesideTorch,
    Changes,
    UnknownImages,
)
from cmt.targets.base import Task
from cmt.targets.registry import TARGETS, not_runnable

_NO_LABELS = "the images are in no class folders"
_ALL_UNKNOWN = "torch's answers to these images are not in the bundle"
_PAIRED = ("drop_pp", "drop_ci95", "agreement", "mcnemar_p")


class Judged(Answering):
    """What a row of the report has of a file's answers."""

    accuracy: Accuracy | None
    reasons: dict[str, str]


@dataclass(frozen=True)
class Images:
    """What files are asked: `count` images of a source (all), see `measure.on_device.choose`."""

    source: ImageSource
    count: int | None = None


@dataclass(frozen=True)
class Measured:
    """What came of it.

    Attributes:
        images: the report's, of a machine.
        rows: by file name, what a row of the report has of it, its `reasons` among that.
        remarks: lines for people on images that were not used.
    """

    images: AskedImages
    rows: dict[str, Judged]
    remarks: Sequence[str]


def measure_accuracy(
    bundle: OpenBundle,
    images: Images,
    files: Sequence[File],
    threads: int,
    task: Task,
    elsewhere: Elsewhere | None = None,
) -> Measured:
    """The accuracy of files on this machine, or `elsewhere`.

    See `measure.on_device.ask` for what it raises.
    """
    reference = reference_of(bundle, files) if elsewhere is None else elsewhere.reference
    asked = list({f.name: f for f in (*files, *([reference] if reference else []))}.values())
    seen = ask(bundle, images.source, images.count, asked, threads, task, elsewhere)
    rows = {file.name: _fields(bundle, seen, file, reference) for file in files}
    source = images.source
    described: AskedImages = {
        "source": source.description,
        "images": len(seen.places),
        "unknown": int(np.count_nonzero(seen.rows == UNKNOWN)),
        "skipped": len(seen.skipped),
        "left_out": source.left_out,
    }
    return Measured(described, rows, [*source.remarks, *seen.skipped])


def reference_of(bundle: OpenBundle, files: Sequence[File]) -> File | None:
    """The FP32 file that runs on this CPU, for images that torch did not answer."""
    for artefact in bundle.artefacts:
        if artefact["precision"] != "fp32" or not_runnable(artefact, bundle.trusted) is not None:
            continue
        if TARGETS[artefact["target"]].gpu_advice is None:
            batch = bundle.manifest["input"]["shape"][0]
            file = File(artefact, None, artefact["settings"], batch, for_unknown=True)
            return next((other for other in files if other.name == file.name), file)
    return None


def _fields(bundle: OpenBundle, seen: Seen, file: File, reference: File | None) -> Judged:
    known, reasons = seen.rows != UNKNOWN, dict[str, str]()
    fields: Judged = {"accuracy": None, "reasons": reasons}
    if known.any():
        fields["beside_torch"] = _beside_torch(seen, file, known)
    if not known.all():
        other = None if reference is None else seen.first[reference.name][:, 0]
        fields["unknown_images"] = _unknown(seen, file, ~known, other)
    if seen.labels is None:
        reasons["accuracy"] = _NO_LABELS
    elif known.any():
        fields["accuracy"], fields["changes"] = _paired(bundle, seen, file, known)
    else:
        right, in_top = _judged(seen, file)
        fields["accuracy"] = {
            "top1": 100 * float(right.mean()),
            "top5": 100 * float(in_top.mean()),
            "images": len(right),
            "drop_pp": None,
            "drop_ci95": None,
            "agreement": None,
            "mcnemar_p": None,
        }
        reasons |= {f"accuracy.{name}": _ALL_UNKNOWN for name in _PAIRED}
    return fields


def _judged(seen: Seen, file: File) -> tuple[Flags, Flags]:
    """Whether each image's label is the first answer, and among the first five."""
    hits = seen.first[file.name] == np.asarray(seen.labels)[:, None]
    return hits[:, 0], hits.any(1)


def _beside_torch(seen: Seen, file: File, known: Flags) -> BesideTorch:
    rows = seen.rows[known]
    torch, ours = seen.answers.logits[rows], seen.beside[file.name][known]
    same = seen.first[file.name][known, 0] == seen.answers.classes[rows, 0]
    return {
        "images": len(rows),
        "agreement": float(same.mean()),
        "max_rel": float(np.abs(ours - torch).max() / max(float(np.abs(torch).max()), 1e-30)),
    }


def _unknown(seen: Seen, file: File, unknown: Flags, other: Any) -> UnknownImages:
    """Top-1 where there are labels, and agreement with the FP32 file where one runs on the CPU."""
    first = seen.first[file.name][unknown, 0]
    return {
        "images": len(first),
        "top1": None
        if seen.labels is None
        else 100 * float((first == seen.labels[unknown]).mean()),
        "agreement": None if other is None else float((first == other[unknown]).mean()),
    }


def _paired(bundle: OpenBundle, seen: Seen, file: File, known: Flags) -> tuple[Accuracy, Changes]:
    """`accuracy` and `changes` beside torch, of the images that it answered."""
    assert seen.labels is not None
    labels, places = seen.labels[known], seen.places[known]
    before = seen.answers.classes[seen.rows[known], 0]
    first = seen.first[file.name][known, 0]
    right, in_top = (flags[known] for flags in _judged(seen, file))
    found = asdict(paired_accuracy(right, in_top, before == labels, first == before))
    accuracy = cast(Accuracy, {**found, "drop_ci95": list(found["drop_ci95"])})

    def image(i: int) -> tuple[str, np.ndarray]:
        place = int(places[i])
        return seen.source.key(place), load_as(seen.source, place, bundle.preprocessing.apply).made

    names = class_names(bundle.manifest["labels"])
    return accuracy, changes(first, before, labels, names, image)
