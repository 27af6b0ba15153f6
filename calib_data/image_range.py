"""What black and white are in images that do not say so themselves, as their owner says it.

For files of 16 bits, 32 bits or floating point alone whose scale nothing in them states;
runtime/cpp/src/image.cpp does the same for the files that it reads.
"""

from __future__ import annotations

import math
import re

from cmt.errors import InputError

ImageRange = tuple[float, float]
"""The values that become grey levels 0 and 255."""
FLAG = "--image-range"
OUTSIDE = "outside"
"""Key in an image's `info`, where it was read by a range: how many values lay outside, clipped."""
_RULE = f"{FLAG} must be two finite numbers, the lower first, such as 0,4095 or 0,1"


def is_range(low: float, high: float) -> bool:
    """Whether these rise and are finite, their distance too, which of far numbers is not."""
    return low < high and math.isfinite(high - low)


def check_range(image_range: ImageRange) -> None:
    """Raise InputError for what is no range."""
    if not is_range(*image_range):
        raise InputError(_RULE)


def parse_range(text: str) -> ImageRange:
    """`0,4095` as numbers; raises InputError for anything else."""
    # float() would also take 1_0, words and digits of other scripts.
    number = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
    match = re.fullmatch(rf"\s*({number})\s*,\s*({number})\s*", text)
    if match is None:
        raise InputError(_RULE)
    image_range = float(match[1]), float(match[2])
    check_range(image_range)
    return image_range


def show_range(image_range: ImageRange) -> str:
    """As it is given on the command line."""
    return f"{FLAG} {image_range[0]:.17g},{image_range[1]:.17g}"
