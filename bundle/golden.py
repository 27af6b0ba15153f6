"""Golden inputs and outputs: does this machine compute what the exporting one did?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt.bundle.arrays import read_array
from cmt.bundle.reader import OpenBundle
from cmt.bundle.running import batch_of, joined, load, run_full, unusable
from cmt.errors import InputError
from cmt.targets.base import Array, Batch
from cmt.targets.entries import Entry, FileEntry
from cmt.targets.registry import computes_otherwise, not_runnable

IMAGES = 8
"""Prepared images in a bundle."""

MAX_GREY_LEVELS = 1
"""What another JPEG decoder may change in a prepared photo. Pillow's own is exact."""

# By precision: largest difference over the largest expected value. The same file answers
# bit for bit on the same machine; other CPUs add in another order, and where they lack INT8
# dot products values change their INT8 step here and there. A wrong file or wrong
# preprocessing differs by about 1.
TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "int8": 1e-1}


@dataclass(frozen=True)
class Check:
    """One thing that was verified.

    Attributes:
        passed: None where this machine cannot do it; `detail` says why.
    """

    name: str
    passed: bool | None
    detail: str


def make_photo(path: Path) -> None:
    """Write a JPEG that tells preprocessing apart: odd size, fine detail, turned by EXIF."""
    from PIL import Image

    rows, columns = np.mgrid[0:213, 0:320]
    waves = np.stack(
        [
            128 + 100 * np.sin(rows / 9 + columns / 31),
            columns * (255 / 319),
            128 + 120 * np.cos(rows * columns / 400),
        ],
        axis=-1,
    )
    image = Image.fromarray(waves.astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to stand upright
    image.save(path, quality=90, exif=exif)


def verify(bundle: OpenBundle, threads: int) -> Iterator[Check]:
    """Prepare the golden photo, then run every file that this machine can on the golden images.

    Raises:
        InputError: there is no file that this machine can run.
    """
    yield _check_pixels(bundle)
    batch = bundle.preprocessing.feed(golden_images(bundle))
    ran = False
    for artefact in bundle.artefacts:
        reason = not_runnable(artefact, bundle.trusted)
        ran |= reason is None
        if reason is not None:
            yield Check(artefact["path"], None, reason)
        else:
            yield check_artefact(bundle, artefact, batch, threads)
    if not ran:
        raise InputError("nothing was verified: this machine can run none of the bundle's files")


def golden_images(bundle: OpenBundle) -> NDArray[np.uint8]:
    """The prepared images (N, H, W, 3); raises InputError where the file holds something else."""
    images = _load(bundle, bundle.manifest["golden"]["images"], np.uint8)
    return _of_shape(images, (len(images), *bundle.preprocessing.size, 3), "golden.images")


def _load(bundle: OpenBundle, entry: FileEntry, dtype: type[np.generic]) -> NDArray[Any]:
    """An array file of the bundle: its hash is right, but whoever wrote both may be wrong."""
    try:
        return read_array(bundle.file(entry), dtype)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{entry['path']} is no NumPy array of the kind expected here ({error}): "
            "export the bundle again"
        ) from error


def _of_shape(array: NDArray[Any], shape: tuple[int, ...], name: str) -> NDArray[Any]:
    if array.shape != shape:
        raise InputError(
            f"{name} has the shape {array.shape}, expected {shape}: export the bundle again"
        )
    return array


def _check_pixels(bundle: OpenBundle) -> Check:
    from PIL import Image

    golden, preprocessing = bundle.manifest["golden"], bundle.preprocessing
    try:
        with Image.open(bundle.file(golden["photo"]), formats=["JPEG", "PNG"]) as photo:
            pixels = preprocessing.apply(photo).astype(np.int16)
    except Exception as error:  # decoders raise many kinds
        raise InputError(
            f"{golden['photo']['path']} cannot be decoded ({error}): export the bundle again"
        ) from error
    shape = (*preprocessing.size, 3)
    expected = _of_shape(_load(bundle, golden["pixels"], np.uint8), shape, "golden.pixels")
    limit = golden["max_grey_levels"]
    difference = int(np.abs(pixels - expected).max())
    detail = f"differs by {difference} grey levels, {limit} allowed"
    return Check("preprocessing", difference <= limit, detail)


def check_artefact(bundle: OpenBundle, artefact: Entry, images: Batch, threads: int) -> Check:
    """Run a file on the golden images, as `Preprocessing.feed` gives them, and compare."""
    path, limit = artefact["path"], artefact["golden"]["max_rel"]
    answers = _answers(bundle, artefact)
    reason = computes_otherwise(artefact)
    if reason is not None and len(answers) == 1:
        return Check(path, None, f"{reason}, and the bundle has no answers in that: export again")
    with unusable(path):
        outputs = run_artefact(bundle, artefact, images, threads)
    if [array.shape for array in outputs] != [array.shape for array in answers[0]]:
        raise InputError(f"{path} has other outputs than its golden ones: export again")
    difference = min(_largest_difference(outputs, expected) for expected in answers)
    return Check(path, difference <= limit, f"differs by {difference:.1e}, {limit:g} allowed")


def _answers(bundle: OpenBundle, artefact: Entry) -> list[list[Array]]:
    """What the file may answer: in the arithmetic of its settings, and where stored in float32."""
    golden, labels = artefact["golden"], bundle.manifest["labels"]
    kinds = [golden[key] for key in ("outputs", "outputs_f32") if key in golden]
    answers = [[_load(bundle, entry, np.float32) for entry in entries] for entries in kinds]
    for arrays in answers:
        classifies = len(arrays) == 1 and arrays[0].ndim == 2
        if labels and classifies and arrays[0].shape[1] != len(labels):
            raise InputError(
                f"{artefact['path']} answers for {arrays[0].shape[1]} classes and the manifest "
                f"names {len(labels)}: export the bundle again"
            )
        if [array.shape for array in arrays] != [array.shape for array in answers[0]]:
            raise InputError(f"the golden answers of {artefact['path']} differ in shape")
    return answers


def _largest_difference(outputs: list[Array], expected: list[Array]) -> float:
    """Infinite where an output is no number, so that no limit is kept."""
    differences = map(_relative_difference, outputs, expected)
    return max(value if np.isfinite(value) else np.inf for value in differences)


def run_artefact(bundle: OpenBundle, artefact: Entry, images: Batch, threads: int) -> list[Array]:
    """A file's outputs on images as `Preprocessing.feed` gives them, in batches of its own size."""
    size, runner = batch_of(bundle), load(bundle, artefact, threads)
    begins = range(0, len(images), size)
    return joined([run_full(runner, images[begin : begin + size], size) for begin in begins])


def _relative_difference(ours: NDArray[Any], expected: NDArray[Any]) -> float:
    scale = max(float(np.abs(expected).max()), 1e-30)
    return float(np.abs(ours.astype(np.float64) - expected).max()) / scale
