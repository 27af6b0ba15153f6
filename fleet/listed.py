"""Images by relative path and sha256, found in a worker's own folder: no pixels travel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cmt.bundle.manifest import is_within
from cmt.calib_data.image_range import ImageRange
from cmt.calib_data.sources import FileImages, KeyedImages, Subset, bundled
from cmt.errors import InputError
from cmt.fleet.cluster import IMAGES
from cmt.measure.on_device import BUNDLED

Listed = Sequence[Sequence[str]]
"""Of each image its key in the source, and its sha256."""


def open_listed(where: str, keys: Sequence[str], image_range: ImageRange | None) -> KeyedImages:
    """These images of the bundled ones, or of the folder that `CMT_IMAGES` names here.

    Where that names no folder, none of them is there.

    Raises:
        InputError: a key is no path within a folder.
    """
    if where == BUNDLED:
        every = bundled("validation")
        places = {every.key(i): i for i in range(len(every))}
        if not places.keys() >= set(keys):
            raise InputError("the bundled images here are others: install the same cmt-export")
        return Subset(every, np.array([places[key] for key in keys], np.int64))
    for key in keys:
        if not is_within(key):
            raise InputError(f"'{key[:200]}' is no path within a folder of images")
    root = Path(os.environ.get(IMAGES) or os.devnull)
    return FileImages(root, [root / key for key in keys], image_range)


def place_of(where: str) -> str:
    """Where this worker looks for images, in words."""
    if where == BUNDLED:
        return "cmt-export itself"
    root = os.environ.get(IMAGES)
    return f"{IMAGES}={root}" if root else f"{IMAGES}, which is not set"


def missing(source: KeyedImages, images: Listed) -> list[str]:
    """Keys of the images that are not there, or are others."""
    return [key for i, (key, sha256) in enumerate(images) if source.digest(i) != sha256]
