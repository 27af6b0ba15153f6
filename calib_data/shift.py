"""How far one set of images is from another: brightness, contrast and colour."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FEATURES = ("red", "green", "blue", "contrast", "colour")
_LEAST_SPREAD = 1.0
"""Grey levels: sets that do not vary at all are still compared, such as grey ones in colour."""


def describe(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N, 5), grey levels: mean of each channel, deviation within the image, colour.

    Args:
        pixels: (N, H, W, 3).
    """
    rows = []
    for image in pixels:
        values = image.astype(np.float32)
        colour = np.abs(values - values.mean(2, keepdims=True)).mean()
        rows.append([*values.mean((0, 1)), values.std(), colour])
    return np.array(rows, np.float64)


def distance(pixels: NDArray[np.uint8], other: NDArray[np.uint8]) -> tuple[float, str]:
    """The largest difference of means in units of the images' own spread (Cohen's d).

    Args:
        pixels, other: (N, H, W, 3) and (M, H, W, 3).

    Returns:
        the distance, 0 or more, and which of `FEATURES` it is of.
    """
    a, b = describe(pixels), describe(other)
    spread = np.sqrt((a.var(0) + b.var(0)) / 2)
    found = np.abs(a.mean(0) - b.mean(0)) / np.maximum(spread, _LEAST_SPREAD)
    worst = int(found.argmax())
    return float(found[worst]), FEATURES[worst]
