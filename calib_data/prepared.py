"""Images preprocessed once and kept on disk, so that every target sees the same pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cmt.calib_data.image_range import ImageRange, show_range
from cmt.calib_data.listing import named
from cmt.calib_data.preprocessing import Preprocessing
from cmt.calib_data.sources import (
    ImageSource,
    UnreadableImageError,
    choose,
    list_hash,
    load_as,
)
from cmt.errors import InputError


@dataclass(frozen=True)
class PreparedImages:
    """A set of preprocessed images.

    Attributes:
        pixels: (N, H, W, 3) uint8, memory-mapped.
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
    """

    pixels: NDArray[np.uint8]
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
    keys: list[str] = []
    digests: list[str] = []
    labels: list[int | None] = []
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
            keys.append(source.key(index))
            if not image.readable:
                unturned.append(keys[-1])
            if image.outside is not None:
                outside[keys[-1]] = image.outside
            digests.append(source.digest(index))
            labels.append(_label_of(source, index, label_map))
        file.truncate(end)  # as if none had been skipped
    if not keys:
        raise InputError(f"no image of {source.description} can be decoded: {skipped[0]}")
    listing = {
        "keys": keys,
        "digests": digests,
        "labels": labels if source.labels is not None else None,
        "skipped": skipped,
        "available": len(source),
        "description": source.description,
        "unturned": unturned,
        "outside": outside,
        "lost_classes": _lost_classes(source, indices, keys),
    }
    (folder / "images.json").write_text(json.dumps(listing))


def _begin_array(file: IO[bytes], shape: tuple[int, ...]) -> int:
    """Write the header of a .npy file of bytes; returns where the file ends."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell() + math.prod(shape)


def _label_of(source: ImageSource, index: int, label_map: dict[int, int] | None) -> int | None:
    """An image's class, as the network counts them; None where the source has no classes."""
    if source.labels is None:
        return None
    label = source.labels[index]
    return label if label_map is None else label_map[label]


def _lost_classes(
    source: ImageSource, indices: NDArray[np.int64], read: Collection[str]
) -> list[str]:
    """The classes whose chosen images are all missing from the keys that could be `read`."""
    if source.labels is None:
        return []
    known = set(read)
    chosen = {source.labels[i] for i in indices}
    kept = {source.labels[i] for i in indices if source.key(i) in known}
    return [source.class_names[label] for label in sorted(chosen - kept)]


def open_prepared(folder: Path, preprocessing: Preprocessing) -> PreparedImages:
    """Open what `prepare` wrote."""
    listing = json.loads((folder / "images.json").read_text())
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")[: len(listing["keys"])]
    labels = None if listing["labels"] is None else np.asarray(listing["labels"], np.int64)
    return PreparedImages(
        pixels,
        labels,
        listing["keys"],
        listing["digests"],
        listing["skipped"],
        listing["available"],
        listing["description"],
        preprocessing,
        listing["unturned"],
        listing["lost_classes"],
        listing["outside"],
    )
