"""A bundle in use: images in, classes or feature maps out, with the base install and one runtime.

`runtime/cpp/src/classifier.cpp` answers by the same rules.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from filelock import Timeout
from numpy.typing import NDArray

from cmt.bundle.locking import lock
from cmt.bundle.reader import OpenBundle, open_bundle
from cmt.bundle.running import batch_of, joined, load, run_full, unusable
from cmt.bundle.signature import check
from cmt.calib_data.decoding import decode
from cmt.calib_data.image_range import OUTSIDE
from cmt.calib_data.orientation import orientation_of
from cmt.calib_data.sources import load_file
from cmt.errors import InputError
from cmt.files import is_own_folder
from cmt.printing import printable
from cmt.targets.base import PRECISIONS, Array, Runner
from cmt.targets.entries import Entry
from cmt.targets.machine import usable_cores
from cmt.targets.registry import TARGETS, not_runnable
from cmt.targets.settings import THREADS, Settings

if TYPE_CHECKING:
    from PIL.Image import Image

    OneImage = str | os.PathLike[str] | bytes | NDArray[np.uint8] | Image
    """A file, or the bytes of a JPEG or PNG; uint8 (height, width, 3), red first, or (height,
    width), grey; Pillow's picture."""

MOST_THREADS = 4096
DEVICE = "CPU"
_WAIT_SECONDS = 5.0
"""For another process that uses the same cache."""


@dataclass(frozen=True)
class Prediction:
    """One class for one image.

    Attributes:
        index: of the class.
        label: its name; empty where the bundle has none.
        probability: softmax of the scores, 0 to 1.
        score: the network's raw answer, a logit.
    """

    index: int
    label: str
    probability: float
    score: float


class Classifier:
    """A bundle ready to answer for images: its files are checked, one of them is loaded.

    One Classifier is for one thread at a time; `share` makes another for each further thread. Used
    in `with`, or closed, it lets go of the file.

    Args:
        bundle: the folder, or what `open_bundle` made of it.
        file: which file of the bundle runs: `int8`, or `openvino/int8` to name the runtime too.
            None takes the smallest precision that runs here: int8, else fp16, else fp32.
        device: `CPU`, which is what None stands for as well.
        threads: of the CPU; None takes what the file was tuned to, else all usable CPUs.
        trust: PEM file of the Ed25519 public key that the bundle must be signed with.
        cache: a folder of the user's own, in which a runtime may keep what it compiled of a file,
            for the next start; it is believed. None keeps nothing.

    Attributes:
        artefact: path within the bundle of the file that runs.
        labels: the classes' names; empty where the bundle has none.

    Raises:
        InputError: the bundle is not as it was written, or not signed as asked for, of a newer
            schema, or nothing that is asked for runs here; the message names the file.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | OpenBundle,
        file: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        *,
        trust: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        if threads is not None and not 1 <= threads <= MOST_THREADS:
            raise InputError(f"threads must be from 1 to {MOST_THREADS}, not {threads}")
        if device not in (None, DEVICE):
            raise InputError(f"files run on {DEVICE}, not on {printable(device)}")
        opened = bundle if isinstance(bundle, OpenBundle) else open_bundle(Path(bundle))
        self._bundle = opened if trust is None else check(opened, Path(trust))
        self._entry, self._threads = choose_file(self._bundle, file), threads
        self._cache = None if cache is None else Path(cache)
        self._preprocessing, self._batch = self._bundle.preprocessing, batch_of(self._bundle)
        self.artefact: str = self._entry["path"]
        self.labels: tuple[str, ...] = tuple(self._bundle.manifest["labels"])
        self._runner: Runner | None = self._load()

    def _load(self) -> Runner:
        # A number of threads that is asked for comes before the one that was found by tuning.
        asked = self._threads is not None
        own = {k: v for k, v in self._entry["settings"].items() if not (asked and k == THREADS)}
        # Two starts at once must not meet in the cache, nor one with what a killed one left there.
        if self._cache is not None:
            with suppress(InputError, OSError, Timeout):
                self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
                cached = TARGETS[self._entry["target"]].cached(own, self._cache.absolute())
                if is_own_folder(self._cache):
                    with lock(self._cache / ".lock", _WAIT_SECONDS):
                        return self._load_with(cached)
        return self._load_with(own)

    def _load_with(self, settings: Settings) -> Runner:
        with unusable(self.artefact):
            return load(self._bundle, self._entry, self._threads or usable_cores(), settings)

    def share(self) -> Classifier:
        """Another Classifier for another thread, on the same loaded file where its runtime may."""
        other = copy(self)
        if TARGETS[self._entry["target"]].one_caller:
            other._runner = other._load()
        return other

    def close(self) -> None:
        """Let go of the loaded file; those that share it keep it."""
        self._runner = None

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # A text is a file's name, though it is a sequence of texts as well.
    @overload
    def classify(self, images: OneImage, top: int = 5) -> list[Prediction]: ...  # type: ignore[overload-overlap]

    @overload
    def classify(self, images: Sequence[OneImage], top: int = 5) -> list[list[Prediction]]: ...

    def classify(
        self, images: OneImage | Sequence[OneImage], top: int = 5
    ) -> list[Prediction] | list[list[Prediction]]:
        """The `top` most probable classes, best first; of equal ones the lower index comes first.

        Args:
            images: one image, for one list; a sequence of images of any sizes, or an array
                (images, height, width, 3), for a list of lists.

        Raises:
            InputError: an image cannot be read, the bundle gives feature maps, or the network
                answers with something else than numbers.
        """
        if top < 1:
            raise InputError(f"top must be at least 1, not {top}")
        if len(self._bundle.manifest["outputs"]) != 1:
            raise InputError(
                f"{self._bundle.path} gives feature maps, no classes: call outputs, or export it "
                "anew with --output logits"
            )
        if not _is_one(images) and not len(images):  # type: ignore[arg-type]
            return []
        (scores,) = self.outputs(images)
        found = [self._best(row, top) for row in scores]
        return found[0] if _is_one(images) else found

    def outputs(self, images: OneImage | Sequence[OneImage]) -> list[Array]:
        """What the network answers, as it is: one array (images, classes) of scores, or the four
        feature maps (images, channels, height, width), strides 4, 8, 16 and 32.

        Args:
            images: as `classify` takes them; one image is a batch of one.
        """
        several: Any = [images] if _is_one(images) else images
        parts = list(self._answers(several))
        if not parts:
            raise InputError("there is no image: give at least one")
        return joined(parts)

    def _answers(self, images: Sequence[OneImage]) -> Iterator[list[Array]]:
        """The outputs of one inference after the other; pixels of no more than that are held."""
        if self._runner is None:
            raise InputError("this Classifier is closed: make another")
        for begin in range(0, len(images), self._batch):
            pixels = np.stack([self._pixels(one) for one in images[begin : begin + self._batch]])
            with unusable(self.artefact):
                outputs = run_full(self._runner, self._preprocessing.feed(pixels), self._batch)
            self._check(outputs, len(pixels))
            yield outputs

    def _pixels(self, image: OneImage) -> NDArray[np.uint8]:
        """The prepared image (height, width, 3)."""
        name = printable(image) if isinstance(image, (str, os.PathLike)) else "an image"
        try:
            picture = self._picture(image)
            pixels = self._preprocessing.apply(picture)
            readable = orientation_of(picture)[1]
        except (InputError, MemoryError, ImportError):
            raise
        except Exception as error:  # decoders raise many kinds
            said = str(error) if name in str(error) else f"{name}: {printable(error)}"
            raise InputError(said) from error
        if outside := picture.info.get(OUTSIDE):
            clipped = f"{outside} values are outside of the bundle's image range and were clipped"
            warnings.warn(f"{name}: {clipped}", stacklevel=2)
        if not readable:
            taken = "its EXIF data cannot be read: it is taken as upright"
            warnings.warn(f"{name}: {taken}", stacklevel=2)
        return pixels

    def _picture(self, image: OneImage) -> Image:
        if isinstance(image, (str, os.PathLike)):
            return load_file(Path(image), self._preprocessing.image_range)
        if isinstance(image, bytes):
            return decode(image, self._preprocessing.image_range)
        from PIL import Image

        if isinstance(image, Image.Image):
            return image
        array = np.asarray(image)
        is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
        if array.dtype != np.uint8 or not is_image or array.size == 0:
            raise InputError(
                f"an array {array.dtype} {array.shape} is no image: give uint8 "
                "(height, width, 3), red first, or (height, width)"
            )
        return Image.fromarray(array)

    def _check(self, outputs: list[Array], count: int) -> None:
        """Raise InputError unless the file answers as the manifest says, in numbers."""
        expected, labels = len(self._bundle.manifest["outputs"]), len(self.labels)
        if [len(output) for output in outputs] != [count] * expected:
            problem = "does not answer with an entry for each image"
        elif expected == 1 and (outputs[0].ndim != 2 or outputs[0].shape[1] == 0):
            problem = "does not answer with a number for each class"
        elif expected == 1 and labels not in (0, outputs[0].shape[1]):
            problem = "does not answer with one number for each label"
        elif not all(np.isfinite(output).all() for output in outputs):
            problem = "answered with NaN or infinity"
        else:
            return
        raise InputError(f"{self.artefact} {problem}: export the bundle again")

    def _best(self, scores: Array, top: int) -> list[Prediction]:
        powers = np.exp(scores.astype(np.float64) - float(scores.max()))
        shares = (powers / powers.sum()).astype(np.float32)
        return [
            Prediction(
                int(index),
                self.labels[index] if self.labels else "",
                float(shares[index]),
                float(scores[index]),
            )
            for index in np.argsort(-scores, kind="stable")[:top]
        ]


def choose_file(bundle: OpenBundle, wanted: str | None) -> Entry:
    """The file that is meant, the smallest precision first; raises InputError where none runs."""
    known: list[Entry] = []
    reason = f"the bundle has no '{printable(wanted)}'"
    for entry in bundle.artefacts:
        missing = not_runnable(entry, bundle.trusted)
        if missing is None:
            known.append(entry)
        elif wanted in (None, *_names(entry)):
            reason = f"{entry['path']}: {missing}"
    meant = [entry for entry in known if wanted in (None, *_names(entry))]
    if not meant:
        runs = ", ".join(_names(entry)[1] for entry in known)
        raise InputError(reason + (f"; this machine can run {runs}" if runs else ""))
    return max(meant, key=lambda entry: PRECISIONS.index(entry["precision"]))


def _names(entry: Entry) -> tuple[str, str]:
    return entry["precision"], f"{entry['target']}/{entry['precision']}"


def _is_one(images: Any) -> bool:
    """Whether these are an image, and no sequence of them."""
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    return isinstance(images, (str, bytes)) or not isinstance(images, Sequence)
