"""Images preprocessed once and kept on disk, so that every target sees the same pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cmt.calib_data.image_range import ImageRange, show_range
from cmt.calib_data.listing import named
from cmt.calib_data.preprocessing import Preprocessing
from cmt.calib_data.reading import ImageList, image_list
from cmt.calib_data.sources import (
    ImageSource,
    Origin,
    UnreadableImageError,
    choose,
    list_hash,
    load_as,
)
from cmt.errors import InputError


class Pixels(Protocol):
    """(N, H, W, 3) uint8 by places, as an array has them."""

    def __getitem__(self, places: Any, /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class PreparedImages:
    """A set of preprocessed images.

    Attributes:
        pixels: (N, H, W, 3) uint8, memory-mapped, or read when they are asked for.
        labels: (N,) int64 class indices, or None.
        keys: image names in the source.
        digests: sha256 of each image's own bytes, before any preparation.
        skipped: one line for each image that could not be read.
        available: how many images the source held.
        description: the source in words.
        unturned: the images whose EXIF data could not be read, taken as upright.
        lost_classes: those of which images were chosen and none could be read.
        outside: of each image that was read by `preprocessing.image_range`, how many of its values
            lie outside and were clipped.
        origin: where `listed` images are; None where they are not read again.
    """

    pixels: Pixels
    labels: NDArray[np.int64] | None
    keys: list[str]
    digests: list[str]
    skipped: list[str]
    available: int
    description: str
    preprocessing: Preprocessing
    unturned: Sequence[str] = ()
    lost_classes: Sequence[str] = ()
    outside: Mapping[str, int] = field(default_factory=dict)
    origin: Origin | None = None

    def remarks(self, name: str) -> list[str]:
        """Lines for people on what could not be read of these `name` images."""
        lines = []
        if self.skipped:
            lines.append(
                f"{len(self.skipped)} {name} image(s) could not be decoded and were left out, "
                f"first {self.skipped[0]}"
            )
        if self.lost_classes:
            lines.append(
                f"no {name} image of {len(self.lost_classes)} class(es) could be decoded: "
                f"{named(self.lost_classes)}"
            )
        if self.unturned:
            lines.append(
                f"{len(self.unturned)} {name} image(s) have EXIF data that cannot be read, and "
                f"were taken as upright: {named(self.unturned)}"
            )
        if self.preprocessing.image_range is not None and not self.outside:
            lines.append(
                f"no {name} image was read by {show_range(self.preprocessing.image_range)}: all "
                "state their own scale"
            )
        return lines + clipped(name, self.preprocessing.image_range, self.outside)

    def __len__(self) -> int:
        return len(self.keys)

    def without(self, digests: Collection[str]) -> PreparedImages:
        """All but the images with these bytes."""
        keep = ~np.isin(self.digests, list(digests))
        if keep.all():
            return self
        return replace(
            self,
            pixels=self.pixels[keep],
            labels=None if self.labels is None else self.labels[keep],
            keys=list(compress(self.keys, keep)),
            digests=list(compress(self.digests, keep)),
        )

    def listed(self, begin: int, end: int) -> ImageList:
        """Some of the images as another process reads them; of sets that have an `origin`."""
        assert self.origin is not None
        keys, digests = self.keys[begin:end], self.digests[begin:end]
        return image_list(self.origin, self.preprocessing, keys, digests)

    @property
    def sha256(self) -> str:
        """Hash of the images' names and bytes: the same for every input size and machine."""
        pairs = zip(self.keys, self.digests, strict=True)
        return list_hash([f"{key} {digest}" for key, digest in pairs])

    def batches(self, size: int, places: NDArray[np.int64] | None = None) -> Iterator[NDArray[Any]]:
        """Batches of the images at these places (all), as `Preprocessing.feed` gives them.

        The last batch is filled up from the beginning.
        """
        if places is None:
            places = np.arange(len(self))
        for begin in range(0, len(places), size):
            # Different images, so that none weighs more in calibration than it must.
            chosen = np.take(places, np.arange(begin, begin + size), mode="wrap")
            yield self.preprocessing.feed(np.asarray(self.pixels[chosen]))

    def batch(self, size: int) -> NDArray[Any]:
        """The first `size` images, starting over at the end."""
        return next(self.batches(size))


class Chained:
    """`Pixels` of several arrays, one behind the other."""

    def __init__(self, arrays: Sequence[NDArray[np.uint8]]) -> None:
        self._arrays, self._ends = arrays, np.cumsum([len(array) for array in arrays])

    def __getitem__(self, places: NDArray[np.int64]) -> NDArray[np.uint8]:
        found = np.empty((len(places), *self._arrays[0].shape[1:]), np.uint8)
        of = np.searchsorted(self._ends, places, side="right")
        for i in np.unique(of):
            begin = self._ends[i] - len(self._arrays[i])
            found[of == i] = self._arrays[i][places[of == i] - begin]
        return found


def clipped(name: str, image_range: ImageRange | None, outside: Mapping[str, int]) -> list[str]:
    """A line for people on what was clipped in `name` images; see `PreparedImages.outside`."""
    keys = [key for key, values in outside.items() if values]
    if image_range is None or not keys:
        return []
    return [
        f"{len(keys)} of {len(outside)} {name} image(s) read by {show_range(image_range)} have "
        f"values outside of it, {sum(outside.values()):,} in all, which were clipped: {named(keys)}"
    ]


def spread(total: int, count: int) -> NDArray[np.int64]:
    """`count` places, or all, evenly over `total`.

    Folders list their images class by class: the first ones would be of one class alone.
    """
    return np.linspace(0, total - 1, min(count, total)).round().astype(np.int64)


def prepare(
    source: ImageSource,
    preprocessing: Preprocessing,
    folder: Path,
    *,
    count: int | None,
    seed: int,
    label_map: dict[int, int] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Preprocess `count` images of the source (see `choose`) into `folder`.

    Images that cannot be decoded are left out and listed. `label_map` turns the source's
    class indices into the network's. Read back with `open_prepared`.

    Raises:
        InputError: no image could be decoded.
    """
    indices = choose(source, count, seed)
    height, width = preprocessing.size
    shape = (len(indices), height, width, 3)
    kept: list[int] = []
    digests: list[str] = []
    skipped: list[str] = []
    unturned: list[str] = []
    outside: dict[str, int] = {}
    # Written piece by piece: in a file that is mapped, a full disk is a SIGBUS without a word.
    with (folder / "pixels.npy").open("wb") as file:
        end = _begin_array(file, shape)
        for index in indices:
            advance(1)
            try:
                image = load_as(source, index, preprocessing.apply)
            except UnreadableImageError as error:
                skipped.append(str(error))
                continue
            file.write(image.made.tobytes())
            kept.append(int(index))
            digests.append(source.digest(index))
            if not image.readable:
                unturned.append(source.key(index))
            if image.outside is not None:
                outside[source.key(index)] = image.outside
        file.truncate(end)  # as if none had been skipped
    made = listing(source, indices, label_map, kept, digests, skipped, unturned, outside)
    (folder / "images.json").write_text(json.dumps(made))


def listing(
    source: ImageSource,
    indices: NDArray[np.int64],
    label_map: dict[int, int] | None,
    read: Sequence[int],
    digests: Sequence[str],
    skipped: Sequence[str],
    unturned: Sequence[str],
    outside: Mapping[str, int],
) -> dict[str, Any]:
    """The content of `images.json` for these `indices` of a source, of which some could be `read`.

    Raises:
        InputError: none could.
    """
    if not read:
        raise InputError(f"no image of {source.description} can be decoded: {skipped[0]}")
    return {
        "keys": [source.key(index) for index in read],
        "digests": digests,
        "labels": None
        if source.labels is None
        else [_label_of(source.labels[index], label_map) for index in read],
        "skipped": skipped,
        "available": len(source),
        "description": source.description,
        "unturned": unturned,
        "outside": outside,
        "lost_classes": _lost_classes(source, indices, read),
    }


def _begin_array(file: IO[bytes], shape: tuple[int, ...]) -> int:
    """Write the header of a .npy file of bytes; returns where the file ends."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell() + math.prod(shape)


def save_pixels(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a .npy file; unlike NumPy's own, it says of a disk that it is full."""
    with path.open("wb") as file:
        _begin_array(file, pixels.shape)
        file.write(np.ascontiguousarray(pixels).data)


def _label_of(label: int, label_map: dict[int, int] | None) -> int:
    """An image's class, as the network counts them."""
    return label if label_map is None else label_map[label]


def _lost_classes(
    source: ImageSource, indices: NDArray[np.int64], read: Sequence[int]
) -> list[str]:
    """The classes whose chosen images are all missing from those that could be `read`."""
    if source.labels is None:
        return []
    lost = {source.labels[i] for i in indices} - {source.labels[i] for i in read}
    return [source.class_names[label] for label in sorted(lost)]


def open_prepared(
    folder: Path,
    preprocessing: Preprocessing,
    pixels_of: Callable[[ImageList], Pixels] | None = None,
    origin: Origin | None = None,
) -> PreparedImages:
    """Open what `prepare` wrote.

    Args:
        pixels_of: gives the pixels of the images, where the folder has not got them.
        origin: of the images, for what reads them again.
    """
    made = json.loads((folder / "images.json").read_text())
    keys, digests = made["keys"], made["digests"]
    if pixels_of is None or origin is None:
        pixels: Pixels = np.load(folder / "pixels.npy", mmap_mode="r")[: len(keys)]
    else:
        pixels = pixels_of(image_list(origin, preprocessing, keys, digests))
    return PreparedImages(
        pixels,
        None if made["labels"] is None else np.asarray(made["labels"], np.int64),
        keys,
        digests,
        made["skipped"],
        made["available"],
        made["description"],
        preprocessing,
        made["unturned"],
        made["lost_classes"],
        made["outside"],
        origin,
    )
