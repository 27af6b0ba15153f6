"""More than 8 bits for each value, brought to 8 by the scale that the file states.

A file of 16 bits whose values all lie in the lower quarter has been written by a sensor of 10, 12
or 14 bits far oftener than by a photographer in the dark; taken as 16 it would be black. So
it is refused, unless it states how many bits count, or whoever owns it states their range.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL.Image import Image

from cmt.calib_data.image_range import FLAG, OUTSIDE, ImageRange
from cmt.calib_data.limits import UnreadableImageError

SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
DARKEST = 64
"""Of 256: where the brightest value's upper byte is below, 14 bits would have been enough."""
_DARK = (
    f"its brightest value is below {DARKEST * 256} of 65,536, and it does not state another "
    f"scale: state it by {FLAG}, or write values that fill 16 bits, or 8"
)
_COLOURS = (
    f"its colours have 16 bits, of which the upper 8 alone are read: {FLAG} is for grey images; "
    "write 8 bits"
)
_BITS, _WHITE_IS_ZERO = 258, 262
_LEAST, _MOST = 340, 341


def check_bright(upper: NDArray[np.uint8]) -> None:
    """Refuse upper bytes of 16 bits that are all small; raises UnreadableImageError."""
    if upper.max(initial=0) < DARKEST:
        raise UnreadableImageError(_DARK)


def grey_of(values: NDArray[np.generic]) -> Image:
    """An 8-bit grey image of the upper bytes of whole numbers from 0 to 65,535, clipped."""
    clipped = np.clip(values.astype(np.int64), 0, 65535) >> 8
    return PillowImage.fromarray(clipped.astype(np.uint8))


def by_range(values: NDArray[np.generic], image_range: ImageRange) -> Image:
    """An 8-bit grey image of values of which `image_range` is the scale; `info` has `OUTSIDE`.

    Raises:
        UnreadableImageError: values that are not finite.
    """
    low, high = image_range
    exact = values.astype(np.float64)
    image = _scaled(exact, low, high)
    image.info[OUTSIDE] = int(np.count_nonzero((exact < low) | (exact > high)))
    return image


def from_png(
    image: Image, significant_bits: int | None, image_range: ImageRange | None = None
) -> Image:
    """A PNG of 16 bits, by its sBIT; colours come from Pillow with their upper bytes alone.

    With sBIT, values are in the upper bits, as PNG says, or, as many programs write them, in the
    lower ones: then none has a bit above, and some have one below.
    """
    if image.mode not in SIXTEEN_BIT:
        _refuse_colours(image_range)
        channels = np.asarray(image)
        check_bright(channels[..., : 1 if image.mode == "LA" else 3])
        return image
    values = np.asarray(image)
    if significant_bits is None or not 8 <= significant_bits < 16:
        if image_range is not None:
            return by_range(values, image_range)
        check_bright((values >> 8).astype(np.uint8))
    elif _in_lower_bits(values, significant_bits):
        return grey_of(values << (16 - significant_bits))
    return grey_of(values)


def _in_lower_bits(values: NDArray[Any], bits: int) -> bool:
    return bool(values.max() < 1 << bits and (values & ((1 << (16 - bits)) - 1)).any())


def _refuse_colours(image_range: ImageRange | None) -> None:
    if image_range is not None:
        raise UnreadableImageError(_COLOURS)


def from_pnm(image: Image, maxval: int | None, image_range: ImageRange | None = None) -> Image:
    """A PGM or PPM file, which Pillow scales by its maxval; a PFM file states no scale.

    Args:
        maxval: None where Pillow takes the values as they are: of 8 bits, or of 16 in grey.
    """
    deep = image.mode == "I"
    if image.mode == "F":
        if image_range is None:
            raise UnreadableImageError(
                f"its floating-point values have no stated range: state it by {FLAG}, or convert it"
            )
        return by_range(np.asarray(image), image_range)
    # Programs write 65,535 whatever the values are.
    stated = maxval != 65535 and not (deep and maxval is None)
    if image_range is not None and not stated:
        if deep:
            return by_range(np.asarray(image), image_range)
        _refuse_colours(image_range)
    image = grey_of(np.asarray(image)) if deep else image
    if not stated:
        check_bright(np.asarray(image))
    return image


def from_tiff(image: Any, image_range: ImageRange | None = None) -> Image:
    """A TIFF file of more than 8 bits, by BitsPerSample, SMinSampleValue and SMaxSampleValue."""
    bits = max(image.tag_v2.get(_BITS, (1,)))
    if bits <= 8:
        return image
    least, most = (_number(image.tag_v2.get(tag)) for tag in (_LEAST, _MOST))
    if image.mode not in (*SIXTEEN_BIT, "F"):
        if least not in (None, 0) or most not in (None, 2.0**bits - 1):
            raise UnreadableImageError("its colours have a range of their own: write 8 bits")
        if most is None:
            _refuse_colours(image_range)
        channels = np.asarray(image)
        check_bright(channels if image.mode == "RGB" else channels[..., :-1])
        return image
    grey = _grey_tiff(image, bits, least, most, image_range)
    if image.tag_v2.get(_WHITE_IS_ZERO) == 0:
        turned = PillowImage.fromarray(255 - np.asarray(grey))
        turned.info |= grey.info
        return turned
    return grey


def _grey_tiff(
    image: Any, bits: int, least: float | None, most: float | None, image_range: ImageRange | None
) -> Image:
    """Grey levels by the range that the file states, else by `image_range`."""
    values = np.asarray(image).astype(np.float64)
    if most is None and bits < 16:
        most = 2.0**bits - 1
    if most is not None:
        return _scaled(values, 0.0 if least is None else least, most)
    if image_range is not None:
        return by_range(values, image_range)
    if bits == 16 and image.mode != "I":
        grey = grey_of(values)
        check_bright(np.asarray(grey))
        return grey
    kind = "floating-point" if image.mode == "F" else "whole"
    raise UnreadableImageError(
        f"its {kind} values have no stated range (SMaxSampleValue): state it by {FLAG}, or write "
        "8 or 16 bits"
    )


def _number(value: Any) -> float | None:
    """One number of a TIFF entry, the same for all channels; None where it is none."""
    numbers = value if isinstance(value, tuple) else (value,)
    return None if len(set(numbers)) != 1 or numbers[0] is None else float(numbers[0])


def _scaled(values: NDArray[np.float64], least: float, most: float) -> Image:
    if not (np.isfinite([least, most]).all() and least < most):
        raise UnreadableImageError(f"it states a range from {least:g} to {most:g}: correct it")
    if not np.isfinite(values).all():
        raise UnreadableImageError("it has values that are not finite: correct it")
    share = np.clip((values - least) / (most - least), 0, 1)
    return PillowImage.fromarray(np.floor(share * 255.999).astype(np.uint8))
