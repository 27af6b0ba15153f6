"""Torch's answers to the images that a bundle was judged on, so that devices need no torch.

An image is known by the sha256 of its own bytes, whatever its name and place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmt.bundle.arrays import bundle_array
from cmt.bundle.manifest import TorchAnswers, follows
from cmt.bundle.reader import OpenBundle
from cmt.bundle.writer import describe_file
from cmt.errors import InputError

KEPT = 5
"""Classes of each image, the most probable first: what top-1 and top-5 ask of a file."""
_FILES: dict[str, type[np.generic]] = {
    "images": np.uint8,
    "classes": np.int32,
    "logits": np.float32,
}


@dataclass(frozen=True)
class Answers:
    """Torch's answers, a row for each image.

    Attributes:
        rows: sha256 of an image's bytes -> its row.
        classes: (images, k) int32, the most probable first.
        logits: (images, k) float32, of these classes.
        folders: name of a validation folder -> class index.
    """

    rows: Mapping[bytes, int]
    classes: NDArray[np.int32]
    logits: NDArray[np.float32]
    folders: Mapping[str, int]


NONE = Answers({}, np.zeros((0, 1), np.int32), np.zeros((0, 1), np.float32), {})
"""Of a bundle that has none: one of an early version, or of feature maps."""


def best(logits: NDArray[np.float32], count: int = KEPT) -> NDArray[np.int32]:
    """The most probable classes (images, count) of logits (images, classes), the best first.

    Of equal ones the lower index comes first, as argmax has it; fewer where there are fewer.
    """
    return np.argsort(-logits, axis=1, kind="stable")[:, :count].astype(np.int32)


def write_answers(
    folder: Path,
    digests: Sequence[str],
    classes: NDArray[np.int32],
    logits: NDArray[np.float32],
    folders: Mapping[str, int],
) -> TorchAnswers:
    """Write torch's answers into a bundle; returns the manifest's `answers`.

    Args:
        digests: sha256 of each image's own bytes.
        classes: (images, k), of `best`.
        logits: (images, k), of these classes.
        folders: name of a validation folder -> class index.
    """
    arrays = {
        "images": np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, 32),
        "classes": classes,
        "logits": logits,
    }
    place = folder / "answers"
    place.mkdir()
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", np.ascontiguousarray(array, _FILES[name]))
    files = {name: describe_file(folder, place / f"{name}.npy") for name in arrays}
    # Of a folder with another name, no manifest can tell.
    named = {name: i for name, i in folders.items() if follows("name", name)}
    return {
        "images": files["images"],
        "classes": files["classes"],
        "logits": files["logits"],
        "folders": named,
    }


def read_answers(bundle: OpenBundle) -> Answers:
    """What `write_answers` wrote, `NONE` where there is none.

    Raises:
        InputError: the arrays do not belong together; `runtime/cpp/src/answers.cpp` agrees.
    """
    entry = bundle.manifest.get("answers")
    if entry is None:
        return NONE
    files = (entry["images"], entry["classes"], entry["logits"])
    kinds = zip(files, _FILES.values(), strict=True)
    images, classes, logits = (bundle_array(bundle, file, dtype) for file, dtype in kinds)
    good = images.ndim == classes.ndim == 2 and images.shape[1] == 32
    good = good and classes.shape == logits.shape and len(classes) == len(images)
    if not (good and classes.min() >= 0):
        raise InputError(
            f"the arrays beside {entry['images']['path']} do not belong together: "
            "export the bundle again"
        )
    rows = {digest.tobytes(): row for row, digest in enumerate(images)}
    return Answers(rows, classes, logits, entry["folders"])


def class_of(folder: str, answers: Answers, labels: Sequence[str]) -> int:
    """The class that a folder of images stands for: as at the export, else by its label.

    A label such as `T-shirt/top` stands for a folder `T-shirt_top`.

    Raises:
        InputError: it stands for no class, or for several.
    """
    known = answers.folders.get(folder)
    if known is not None and (not labels or known < len(labels)):
        return known
    found = [i for i, label in enumerate(labels) if label.replace("/", "_") == folder]
    if len(found) != 1:
        problem = "stands for several classes" if found else "is no class"
        raise InputError(
            f"--val-data has a folder '{folder[:200]}', which {problem} of the bundle: name the "
            "folders as they were at the export, or after the labels"
        )
    return found[0]
