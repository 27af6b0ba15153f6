"""Images that a file answers otherwise than torch, as the report shows them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt.measure.statistics import by_class
from cmt.printing import printable
from cmt.report.rows import Changes, ImageChange

CHANGED_IMAGES = 4
"""Of each kind, lost and gained, that a row shows."""
THUMBNAIL_SIZE = (72, 72)
Classes = NDArray[np.integer[Any]]


def class_names(labels: Sequence[str]) -> Callable[[int], str]:
    """What gives a class's name for its index; numbers them where they have none."""
    return lambda index: labels[index] if labels else f"class {index}"


def changes(
    first: Classes,
    before: Classes,
    labels: Classes,
    name: Callable[[int], str],
    image: Callable[[int], tuple[str, NDArray[np.uint8]]],
) -> Changes:
    """The report's `changes` of one file.

    Args:
        first, before: (images,) first answers of the file and of torch.
        labels: (images,) class indices.
        name: of a class by its index.
        image: key and pixels (H, W, 3) of an image by its place.
    """
    lost = np.flatnonzero((before == labels) & (first != labels))
    gained = np.flatnonzero((before != labels) & (first == labels))
    shown: list[ImageChange] = []
    for i in (*lost[:CHANGED_IMAGES], *gained[:CHANGED_IMAGES]):
        key, pixels = image(i)
        shown.append(
            {
                "key": printable(key),
                "label": name(labels[i]),
                "baseline": name(before[i]),
                "answer": name(first[i]),
                "thumbnail": _thumbnail(pixels),
            }
        )
    classes = by_class(first, before, labels)
    return {
        "lost": len(lost),
        "gained": len(gained),
        "classes": [{"name": name(index), **counts} for index, counts in classes],
        "images": shown,
    }


def _thumbnail(pixels: NDArray[np.uint8]) -> str:
    """A small JPEG in base64 of (H, W, 3) uint8 pixels."""
    from PIL import Image

    image, file = Image.fromarray(np.asarray(pixels)), io.BytesIO()
    image.thumbnail(THUMBNAIL_SIZE)
    image.save(file, "JPEG", quality=75)
    return base64.b64encode(file.getvalue()).decode()
