"""The chunks of a PNG file; runtime/cpp/src/png_chunks.cpp reads and refuses the same.

A PNG is read where it is whole: each chunk up to and with IEND is there and has the checksum that
it says, of text as of pixels, and there are as many pixels as the header says; what comes after
IEND is ignored. A file with a wrong checksum has
been damaged, and nothing tells by how much. Decoders are then given the chunks that make pixels
alone: texts, profiles and animations cannot cost memory or end in an error.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from cmt.calib_data.limits import MOST_TEXT, UnreadableImageError, check_size
from cmt.calib_data.orientation import from_raw_profile

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PALETTE = 3
_MOST_DEFLATED = 1040
"""Times, a little more than DEFLATE can make of a byte."""
_PIECE = 2**16
"""Bytes that are unpacked at once: into sixty megabytes, at most."""
_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""Of interlaced pixels: first column and row, and from one to the next."""


@dataclass(frozen=True)
class Png:
    """A PNG file taken apart.

    Attributes:
        pixels: a PNG file of what makes the pixels alone.
        deep: it has 16 bits for each value.
        significant_bits: what sBIT says of the first channel; None without.
        exif, xmp: empty where there are none.
    """

    pixels: bytes
    deep: bool
    significant_bits: int | None
    exif: bytes
    xmp: bytes


def read_png(content: bytes) -> Png:
    """Take a PNG file apart; raises UnreadableImageError for one that is not whole."""
    chunks = list(_chunks(content))
    header = _check_header(chunks)
    depth, colour = header[8], header[9]
    kept = [(b"IHDR", header)]
    if colour == _PALETTE:
        kept.append((b"PLTE", _palette(chunks, depth)))
    bodies = _image_data(chunks)
    _check_held(header, bodies)
    kept += [(b"IDAT", body) for body in bodies]
    exif, xmp = _metadata(chunks)
    pixels = SIGNATURE + b"".join(_chunk(*chunk) for chunk in [*kept, (b"IEND", b"")])
    significant = _last(chunks, b"sBIT")
    return Png(
        pixels,
        depth == 16,
        significant[0] if significant else None,
        exif,
        xmp,
    )


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, data) of each chunk, up to and with IEND."""
    view, at, name = memoryview(content), len(SIGNATURE), b""
    while name != b"IEND":
        if len(view) - at < 12:
            raise UnreadableImageError("it is damaged (it ends too early): get it anew")
        (length,) = struct.unpack_from(">I", view, at)
        name, end = bytes(view[at + 4 : at + 8]), at + 8 + length
        if end + 4 > len(view):
            raise UnreadableImageError("it is damaged (it ends too early): get it anew")
        (checksum,) = struct.unpack_from(">I", view, end)
        if zlib.crc32(view[at + 4 : end]) != checksum:
            raise UnreadableImageError("it is damaged (wrong checksum): get it anew")
        yield name, bytes(view[at + 8 : end])
        at = end + 4


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _check_header(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """IHDR's data, of a kind that exists; every other chunk that decoders must know is known."""
    known = {b"PLTE", b"IDAT", b"IEND"}
    name, header = chunks[0]
    odd = any(not n[0] & 0x20 and n not in known for n, _ in chunks[1:])
    if name != b"IHDR" or len(header) != 13 or odd:
        raise UnreadableImageError("it is damaged (odd chunks): get it anew")
    depth, colour, compression, filtering, interlacing = header[8:]
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlacing > 1:
        raise UnreadableImageError("it has an odd format: convert it")
    return header


def _check_held(header: bytes, bodies: list[bytes]) -> None:
    """Raise UnreadableImageError for other than as many pixels as the header says.

    Decoders make up what is missing, each its own.
    """
    width, height, depth, colour = struct.unpack_from(">IIBB", header)
    check_size(width, height, width * height)
    size = unpacked_size(width, height, depth * _CHANNELS[colour], header[12] == 1)
    if size > _MOST_DEFLATED * sum(map(len, bodies)):
        check_size(width, height, 0)
    unpacker, total = zlib.decompressobj(), 0
    try:
        for body in bodies:
            for at in range(0, len(body), _PIECE):
                total += len(unpacker.decompress(body[at : at + _PIECE]))
                if total > size or unpacker.unused_data:
                    raise zlib.error("too much of it")
    except zlib.error as error:
        raise UnreadableImageError("it is damaged (odd pixels): get it anew") from error
    if total < size or not unpacker.eof:
        raise UnreadableImageError("it is damaged (too few pixels): get it anew")


def unpacked_size(width: int, height: int, bits: int, interlaced: bool) -> int:
    """Bytes of all rows with their filters, of so many bits per pixel."""
    total = 0
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _palette(chunks: list[tuple[bytes, bytes]], depth: int) -> bytes:
    """As many colours as pixels can name, black where the file gives fewer."""
    names = [name for name, _ in chunks]
    palettes = [data for name, data in chunks if name == b"PLTE"]
    if len(palettes) != 1 or names.index(b"PLTE") > _first_data(names):
        raise UnreadableImageError("it is damaged (no palette): get it anew")
    (palette,) = palettes
    if not 0 < len(palette) <= 768 or len(palette) % 3:
        raise UnreadableImageError("it is damaged (odd palette): get it anew")
    whole = 3 << depth
    return palette[:whole].ljust(whole, b"\0")


def _first_data(names: list[bytes]) -> int:
    return names.index(b"IDAT") if b"IDAT" in names else len(names)


def _image_data(chunks: list[tuple[bytes, bytes]]) -> list[bytes]:
    """The data of all IDAT, which follow on each other."""
    names = [name for name, _ in chunks]
    begin, count = _first_data(names), names.count(b"IDAT")
    if set(names[begin : begin + count]) != {b"IDAT"}:
        raise UnreadableImageError("it is damaged (no pixels, or in pieces): get it anew")
    return [data for name, data in chunks if name == b"IDAT"]


def _last(chunks: list[tuple[bytes, bytes]], name: bytes) -> bytes:
    return next((data for other, data in reversed(chunks) if other == name), b"")


def _metadata(chunks: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """(EXIF, XMP); of several the last."""
    exif, profile, xmp = _last(chunks, b"eXIf"), b"", b""
    for name, data in chunks:
        if name not in (b"tEXt", b"zTXt", b"iTXt"):
            continue
        key, _, rest = data.partition(b"\0")
        if key == b"XML:com.adobe.xmp":
            xmp = _text(name, rest)
        elif key == b"Raw profile type exif":
            profile = from_raw_profile(_text(name, rest))
    return exif or profile, xmp


def _text(name: bytes, rest: bytes) -> bytes:
    """What follows a text chunk's keyword, unpacked; as it is where it cannot be."""
    if name == b"tEXt":
        return rest
    if name == b"zTXt":
        return _unpacked(rest[1:])
    match = re.match(rb"(.)(.)[^\0]*\0[^\0]*\0", rest, re.DOTALL)
    if match is None:
        return rest
    body = rest[match.end() :]
    return body if match[1] == b"\0" else _unpacked(body)


def _unpacked(packed: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed, MOST_TEXT)
    except zlib.error:
        return packed
    return text if unpacker.eof else packed
