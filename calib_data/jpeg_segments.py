"""The segments of a JPEG file; runtime/cpp/src/jpeg_segments.cpp reads and refuses the same.

A JPEG is read where its segments follow on each other to the end marker, and it is of the kinds
that every decoder knows: 8 bits, Huffman coded, sequential or progressive, grey, three colours or
four. Decoders are then given what makes pixels alone, so that no EXIF header or comment can end
in an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from cmt.calib_data.limits import MOST_PIXELS, UnreadableImageError, check_size

START = b"\xff\xd8"
_SOS, _EOI, _APP0, _APP1, _APP14, _COM = 0xDA, 0xD9, 0xE0, 0xE1, 0xEE, 0xFE
_PROGRESSIVE = 0xC2
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_KNOWN_FRAMES = (0xC0, 0xC1, _PROGRESSIVE)
_KNOWN = {*_FRAMES, 0xC4, _SOS, 0xDB, 0xDD, *range(0xE0, 0xF0), _COM}
"""Frames, tables, scans, and what is only said."""
_MOST_SCANS = 100
_MOST_SCANNED = 16 * MOST_PIXELS
"""Pixels in all scans: half a megabyte can say as much work as a minute's."""
_PIXELS_PER_BYTE = 512
"""At most: each block of 64 takes a bit."""
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""In coded data, where a zero or a number of restart follows all others."""
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


@dataclass(frozen=True)
class Jpeg:
    """A JPEG file taken apart; `exif` and `xmp` are empty where there are none.

    Attributes:
        pixels: a JPEG file of what makes the pixels alone.
    """

    pixels: bytes
    exif: bytes
    xmp: bytes


def read_jpeg(content: bytes) -> Jpeg:
    """Take a JPEG file apart; raises UnreadableImageError for one that is not whole."""
    kept, exif, xmp, frames, scans = [START], b"", b"", [], []
    for marker, data, whole in _segments(content):
        if marker in _FRAMES:
            frames.append((marker, data))
        elif marker == _SOS:
            if not frames:
                raise UnreadableImageError("it is damaged (no size before its pixels): get it anew")
            scans.append(data)
        elif marker == _APP1 and data.startswith(_EXIF):
            exif += data[len(_EXIF) :] if exif else data
        elif marker == _APP1 and data.startswith(_XMP):
            xmp = data[len(_XMP) :]
        if not _only_said(marker, data):
            kept.append(whole)
    _check_frames(frames, scans, len(content))
    return Jpeg(b"".join([*kept, b"\xff\xd9"]), exif, xmp)


def _only_said(marker: int, data: bytes) -> bool:
    """Whether a segment says something that makes no pixels; Adobe's and JFIF's tell colours."""
    if marker == _APP0:
        return not (data.startswith(b"JFIF\0") and len(data) >= 14)
    if marker == _APP14:
        return not (data.startswith(b"Adobe") and len(data) >= 12)
    return marker == _COM or marker & 0xF0 == _APP0


def _segments(content: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(marker, data, all bytes) of each segment before the end; a scan's coded data with it."""
    at = len(START)
    while True:
        match = _MARKER.match(content, at)
        if match is None:
            raise UnreadableImageError("it is damaged (it ends too early): get it anew")
        marker, begin = match[1][0], match.end() - 2
        if marker == _EOI:
            return
        length = int.from_bytes(content[begin + 2 : begin + 4], "big")
        at = begin + 2 + length
        if length < 2 or at > len(content) or marker not in _KNOWN:
            raise UnreadableImageError("it is damaged (odd segment): get it anew")
        data = content[begin + 4 : at]
        if marker == _SOS:
            match = _NEXT_MARKER.search(content, at)
            at = len(content) if match is None else match.start()
        yield marker, data, content[begin:at]


def _check_frames(frames: list[tuple[int, bytes]], scans: list[bytes], size: int) -> None:
    if len(frames) != 1 or not scans:
        raise UnreadableImageError("it is damaged (no pixels, or two pictures): get it anew")
    marker, data = frames[0]
    if len(data) < 6:
        raise UnreadableImageError("it is damaged (odd segment): get it anew")
    height, width = int.from_bytes(data[1:3], "big"), int.from_bytes(data[3:5], "big")
    if marker not in _KNOWN_FRAMES or data[0] != 8 or data[5] not in (1, 3, 4):
        raise UnreadableImageError("it is of a rare kind of JPEG: convert it")
    check_size(width, height, _PIXELS_PER_BYTE * size)
    if len(scans) > _MOST_SCANS or len(scans) * width * height > _MOST_SCANNED:
        raise UnreadableImageError(f"its {len(scans)} scans are too much work: save it again")
    if marker == _PROGRESSIVE and not _complete(set(data[6::3]), scans):
        raise UnreadableImageError("it is damaged (scans are missing): get it anew")


def _complete(components: set[int], scans: list[bytes]) -> bool:
    """Whether each coefficient of each component has come to its last bit.

    Decoders smooth over what is missing, each version its own way.
    """
    missing = {component: [-1] * 64 for component in components}
    for scan in scans:
        count = scan[0] if scan else 0
        if len(scan) != 4 + 2 * count:
            return False
        first, last, bits = scan[-3:]
        for component in scan[1 : 1 + 2 * count : 2]:
            if component not in missing or not first <= last < 64:
                return False
            missing[component][first : last + 1] = [bits & 15] * (last + 1 - first)
    return not any(any(bits) for bits in missing.values())
