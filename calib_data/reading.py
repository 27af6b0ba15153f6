"""A piece of a set of images, read and prepared: the one task that all reading is divided into.

`read_images` is a function of JSON-like arguments, so that any process can be asked that finds the
images by their keys; what it gives hangs on nothing but these and the images' own bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from cmt.calib_data.limits import UnreadableImageError
from cmt.calib_data.preprocessing import Description, Preprocessing
from cmt.calib_data.sources import Origin, load_as, reopened
from cmt.errors import MachineError
from cmt.printing import printable


class ImageList(TypedDict):
    """Which images, and how they are prepared; JSON.

    Attributes:
        keys: of `ImageSource.key`: in a folder, relative paths.
        digests: sha256 of each one's own bytes; `sources.UNREADABLE` of a file that is not there.
        preprocessing: of `Preprocessing.describe`.
    """

    origin: Origin
    keys: list[str]
    digests: list[str]
    preprocessing: Description


class ReadImages(TypedDict):
    """What was read of an `ImageList`.

    Attributes:
        pixels: (N, H, W, 3) uint8, of those that could be read, in their order.
        read: (N,) their places in the list.
        skipped: a line for each of the others.
        unturned: places of those whose EXIF data could not be read, taken as upright.
        outside: of each that was read by a stated range, its place and how many of its values lie
            outside.
    """

    pixels: NDArray[np.uint8]
    read: NDArray[np.int64]
    skipped: list[str]
    unturned: list[int]
    outside: list[tuple[int, int]]


def image_list(
    origin: Origin, preprocessing: Preprocessing, keys: list[str], digests: list[str]
) -> ImageList:
    """A list of images that are prepared so, whether or not files then normalise by themselves."""
    described = replace(preprocessing, in_graph=False).describe(batch=1)
    return {"origin": origin, "keys": keys, "digests": digests, "preprocessing": described}


def read_images(images: ImageList) -> ReadImages:
    """Read and prepare images; those that cannot be decoded are left out.

    Raises:
        MachineError: an image has other bytes than those that are listed.
    """
    preprocessing = Preprocessing.from_description(images["preprocessing"])
    source = reopened(images["origin"], images["keys"])
    pixels: list[NDArray[np.uint8]] = []
    read: list[int] = []
    found: ReadImages = {
        "pixels": np.zeros((0, *preprocessing.size, 3), np.uint8),
        "read": np.zeros(0, np.int64),
        "skipped": [],
        "unturned": [],
        "outside": [],
    }
    for place, digest in enumerate(images["digests"]):
        if source.digest(place) != digest:
            raise MachineError(
                f"the image {printable(source.key(place))} has changed since the start: let "
                "nothing write to the images"
            )
        try:
            image = load_as(source, place, preprocessing.apply)
        except UnreadableImageError as error:
            found["skipped"].append(str(error))
            continue
        pixels.append(image.made)
        read.append(place)
        if not image.readable:
            found["unturned"].append(place)
        if image.outside is not None:
            found["outside"].append((place, image.outside))
    if read:
        found["pixels"], found["read"] = np.stack(pixels), np.array(read, np.int64)
    return found


def part(images: ImageList, places: Sequence[int] | NDArray[np.int64]) -> ImageList:
    """Some images of a list."""
    keys, digests = images["keys"], images["digests"]
    return {
        **images,
        "keys": [keys[place] for place in places],
        "digests": [digests[place] for place in places],
    }


class PixelsOnDemand:
    """Pixels (N, H, W, 3) uint8 of images that can all be read, each when it is asked for.

    What was asked for last is kept in memory: parity and timing look at the same few again.
    """

    def __init__(self, images: ImageList) -> None:
        self._images = images
        self._one = lru_cache(MOST_KEPT)(self._read)

    def __len__(self) -> int:
        return len(self._images["keys"])

    def __getitem__(self, places: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.stack([self._one(int(place)) for place in places])

    def _read(self, place: int) -> NDArray[np.uint8]:
        return whole(read_images(part(self._images, [place])), 1)[0]


MOST_KEPT = 256
"""Images in memory: 39 MB at 224 pixels."""


def whole(found: ReadImages, count: int) -> NDArray[np.uint8]:
    """The pixels of all `count` images; raises MachineError where one can be read no more."""
    if len(found["read"]) < count:
        raise MachineError(f"{found['skipped'][0]}: it could be read before")
    return found["pixels"]
