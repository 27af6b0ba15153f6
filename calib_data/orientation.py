"""Which way up an image is; runtime/cpp/src/orientation.cpp follows the same rule.

EXIF data that has an orientation decides, also where that is "upright". XMP data is asked only
where there is no EXIF data or it has no orientation. EXIF data that cannot be read means upright.
"""

from __future__ import annotations

import binascii
import re
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

UPRIGHT = 1
_TAG = 0x0112
_ENTRY = struct.calcsize("=HHII")
_NUMBERS = {3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I"}
"""struct's letters for TIFF's types that hold a whole number; bytes are none, as in Pillow."""
_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_RAW_PROFILE = "Raw profile type exif"
_XMP_TEXT = "XML:com.adobe.xmp"
ORIENTATION_KEYS = ("exif", "xmp", _RAW_PROFILE, _XMP_TEXT)
"""Where Pillow keeps what says an image's orientation, in `Image.info`."""


class UnreadableExifError(ValueError):
    """EXIF data, or the orientation in it, cannot be read."""


def orientation(exif: bytes, xmp: bytes) -> tuple[int, bool]:
    """The orientation, 1 to 8 as EXIF numbers them, and whether the EXIF data could be read."""
    try:
        stated = exif_orientation(exif)
    except UnreadableExifError:
        return UPRIGHT, False
    return (xmp_orientation(xmp) if stated is None else stated), True


def exif_orientation(data: bytes) -> int | None:
    """The orientation in EXIF data, with or without `Exif\\0\\0` before it; None without one.

    As in Pillow, the last entry counts, and numbers beyond 1 to 8 are upright. It is one whole
    number of 16 or 32 bits, or a signed byte.

    Raises:
        UnreadableExifError: no TIFF structure, one that is cut off before an orientation, or an
            orientation that is no single whole number.
    """
    data = re.sub(rb"^(Exif\0\0){1,2}", b"", data)
    if not data:
        return None
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        raise UnreadableExifError("no byte order")
    value, whole = _last_entry(data, order)
    if value is None:
        if not whole:
            raise UnreadableExifError("cut off")
        return None
    kind, number, place = value
    if kind not in _NUMBERS or number != 1:
        raise UnreadableExifError("the orientation is no whole number")
    try:
        (found,) = struct.unpack_from(order + _NUMBERS[kind], data, place)
    except struct.error as error:
        raise UnreadableExifError("cut off") from error
    return found if 1 <= found <= 8 else UPRIGHT


def _last_entry(data: bytes, order: str) -> tuple[tuple[int, int, int] | None, bool]:
    """The orientation's (type, count, place of the value), and whether the list is all there."""
    last = None
    try:
        (begin,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, begin)
        for place in range(begin + 2, begin + 2 + _ENTRY * count, _ENTRY):
            tag, kind, number = struct.unpack_from(order + "HHI", data, place)
            if tag == _TAG:
                last = kind, number, place + 8
    except struct.error:
        return last, False
    return last, True


def xmp_orientation(data: bytes) -> int:
    """The orientation that XMP data states first, else upright."""
    match = _IN_XMP.search(data)
    found = int(match[1]) if match else UPRIGHT
    return found if 1 <= found <= 8 else UPRIGHT


def from_raw_profile(text: bytes) -> bytes:
    """EXIF data in hexadecimal after three lines, as ImageMagick stores it; else the text itself.

    The text is no EXIF data, and so found unreadable where that is asked.
    """
    try:
        return binascii.unhexlify(b"".join(text.split(b"\n", 3)[3].split()))
    except (IndexError, binascii.Error):
        return text


def orientation_of(image: Image) -> tuple[int, bool]:
    """`orientation` of an image that Pillow has read, from what it found in the file."""
    from PIL import ExifTags

    exif, xmp = image.info.get("exif"), image.info.get("xmp")
    if exif is None and _RAW_PROFILE in image.info:
        exif = from_raw_profile(str(image.info[_RAW_PROFILE]).encode("latin-1", "replace"))
    xmp = image.info.get(_XMP_TEXT) or xmp or b""
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    if isinstance(exif, bytes):
        return orientation(exif, xmp)
    try:  # a TIFF file's own entries, or what was set in memory
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged data raises what it likes
        return UPRIGHT, False
    if found is None:
        return xmp_orientation(xmp), True
    return (found if found in range(1, 9) else UPRIGHT), True


def turned(image: Image, orientation: int) -> Image:
    """The image as `orientation` says it is to be seen."""
    from PIL.Image import Transpose

    if orientation == UPRIGHT:
        return image
    ways = (
        Transpose.FLIP_LEFT_RIGHT,
        Transpose.ROTATE_180,
        Transpose.FLIP_TOP_BOTTOM,
        Transpose.TRANSPOSE,
        Transpose.ROTATE_270,
        Transpose.TRANSVERSE,
        Transpose.ROTATE_90,
    )
    return image.transpose(ways[orientation - 2])
