"""Image files that are nearly right: JPEG and PNG, damaged where readers have to decide.

Every function takes its own random generator, so that a seed repeats a run.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

Rng = random.Random
SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NASTY = (0, 1, 2, 3, 4, 7, 8, 9, 13, 16, 127, 128, 254, 255)
_LENGTHS = (0, 1, 2, 3, 5, 6, 8, 12, 13, 26, 100)


def picture(width: int = 11, height: int = 7) -> Image.Image:
    """No two corners alike, so that every orientation is told from the others."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = 128 + 127 * np.sin(rows[..., None] / (1, 2, 3) + columns[..., None] / (2, 3, 1))
    return Image.fromarray(waves.astype(np.uint8))


def seeds() -> dict[str, bytes]:
    """Small images of every kind that decoders tell apart."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", 'tiff:Orientation="3"', zip=True)
    text.add_text("Raw profile type exif", f"\nexif\n{14:8}\n{exif.tobytes().hex()}\n", zip=True)
    xmp = b'<x tiff:Orientation="8"/>'
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "exif.jpg": ("RGB", {"exif": exif}),
        "both.jpg": ("RGB", {"exif": exif, "xmp": xmp, "subsampling": 0}),
        "xmp.jpg": ("RGB", {"xmp": xmp, "progressive": True}),
        "grey.jpg": ("L", {"restart_marker_blocks": 1}),
        "cmyk.jpg": ("CMYK", {"progressive": True}),
        "exif.png": ("RGB", {"exif": exif}),
        "text.png": ("RGBA", {"pnginfo": text}),
        "grey.png": ("L", {}),
        "alpha.png": ("LA", {}),
        "deep.png": ("I;16", {}),
        "bits.png": ("1", {}),
        "palette.png": ("P", {"transparency": b"\0\7\xff"}),
        "few.png": ("few", {"bits": 2}),
    }
    found = {}
    for name, (mode, options) in kinds.items():
        file = io.BytesIO()
        _in_mode(mode).save(file, "JPEG" if name.endswith("jpg") else "PNG", **options)
        found[name] = file.getvalue()
    for colour, channels in ((2, 3), (4, 2), (6, 4)):
        found[f"deep{colour}.png"] = _deep_png(colour, channels)
    found["interlaced.png"] = _interlaced(found["grey.png"])
    return found


def _in_mode(mode: str) -> Image.Image:
    if mode == "I;16":
        grey = np.asarray(picture().convert("L")).astype(np.uint16)
        return Image.fromarray(grey * 257)
    if mode == "few":
        return picture().quantize(3)
    return picture().convert(mode)


def _deep_png(colour: int, channels: int) -> bytes:
    values = np.random.default_rng(colour).integers(0, 65536, (5, 9 * channels)).astype(">u2")
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))
    header = struct.pack(">IIBBBBB", 9, 5, 16, colour, 0, 0, 0)
    return join_png([(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")])


def _interlaced(content: bytes) -> bytes:
    """The same chunks with rows for Adam7, whose bytes are others."""
    chunks = split_png(content)
    header = chunks[0][1][:12] + b"\1"
    width, height = struct.unpack_from(">II", header)
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
    rows = b""
    for left, top, across, down in (*passes, (0, 1, 1, 2)):
        columns = len(range(left, width, across))
        lines = len(range(top, height, down)) if columns else 0
        rows += bytes((i * 37 + left) % 251 if i % (columns + 1) else 0
                      for i in range(lines * (columns + 1)))  # fmt: skip
    return join_png([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


# PNG


def split_png(content: bytes) -> list[tuple[bytes, bytes]]:
    """(name, data) of each chunk that is there."""
    chunks, at = [], len(SIGNATURE)
    while at + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def join_png(chunks: list[tuple[bytes, bytes]], wrong: int | None = None) -> bytes:
    """A PNG of these chunks, the checksum of one of them wrong."""
    return SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + name + data
        + struct.pack(">I", zlib.crc32(name + data) ^ (i == wrong))
        for i, (name, data) in enumerate(chunks)
    )  # fmt: skip


def mutate_png(content: bytes, rng: Rng) -> bytes:
    """Chunks changed, dropped, doubled or moved; checksums mostly right again."""
    chunks = split_png(content)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(chunks)) if chunks else 0
        what = rng.random()
        if not chunks or what < 0.15:
            chunks.insert(place, _random_chunk(rng))
        elif what < 0.25:
            del chunks[place]
        elif what < 0.35:
            chunks.insert(rng.randrange(len(chunks) + 1), chunks[place])
        elif what < 0.45:
            chunks.append(chunks.pop(place))
        elif what < 0.6:
            chunks[place] = chunks[place][0], mutate_bytes(chunks[place][1], rng)
        elif what < 0.8:
            chunks = [_changed_chunk(chunk, rng) for chunk in chunks]
        else:
            chunks = _data_in_pieces(chunks, rng)
    wrong = rng.randrange(len(chunks)) if chunks and rng.random() < 0.15 else None
    result = join_png(chunks, wrong)
    return mutate_bytes(result, rng) if rng.random() < 0.1 else result


def _random_chunk(rng: Rng) -> tuple[bytes, bytes]:
    text = rng.choice((b"XML:com.adobe.xmp", b"Raw profile type exif", b"exif", b"", b"Comment"))
    exif = random_exif(rng)
    bodies: dict[bytes, bytes] = {
        b"eXIf": exif,
        b"tEXt": text + b"\0" + rng.choice((random_xmp(rng), _profile(exif, rng))),
        b"zTXt": text + b"\0\0" + zlib.compress(_profile(exif, rng)),
        b"iTXt": text + b"\0" + rng.choice((b"\0\0\0\0", b"\0", b"\1\0en\0\0")) + random_xmp(rng),
        b"sBIT": bytes([rng.randint(0, 17)] * rng.randint(0, 4)),
        b"tRNS": rng.randbytes(rng.randint(0, 7)),
        b"PLTE": rng.randbytes(rng.choice((0, 3, 4, 6, 48, 768, 771))),
        b"acTL": struct.pack(">II", rng.randint(0, 2), 0),
        b"IDAT": b"",
        b"iCCP": b"name\0\0" + rng.randbytes(9),
        b"gAMA": rng.randbytes(rng.randint(0, 5)),
        b"ABCD": b"",
        b"ab!d": b"x",
    }
    return rng.choice(list(bodies.items()))


def _profile(exif: bytes, rng: Rng) -> bytes:
    digits = exif.hex().encode()
    digits = rng.choice((digits, digits.upper(), digits[:-1], digits + b"g", b" ".join([digits])))
    return rng.choice((b"\nexif\n      14\n", b"\n\n", b"")) + digits + rng.choice((b"\n", b""))


def _changed_chunk(chunk: tuple[bytes, bytes], rng: Rng) -> tuple[bytes, bytes]:
    """Of the header a field, of the pixels a byte before or after they are packed."""
    name, data = chunk
    if name == b"IHDR" and len(data) == 13 and rng.random() < 0.5:
        place = rng.choice((3, 7, 8, 9, 10, 11, 12))
        values = {8: (1, 2, 4, 8, 16), 9: (0, 2, 3, 4, 6)}.get(place, _NASTY)
        return name, data[:place] + bytes([rng.choice(values)]) + data[place + 1 :]
    if name == b"IDAT":
        try:
            rows = zlib.decompress(data)
        except zlib.error:
            return name, mutate_bytes(data, rng)
        kind = rng.random()
        if kind < 0.4:
            return name, zlib.compress(mutate_bytes(rows, rng), rng.choice((0, 1, 9)))
        if kind < 0.6:
            return name, data[: -rng.randint(1, 5)]
        if kind < 0.8:
            return name, data + rng.randbytes(rng.randint(1, 9))
        return name, zlib.compress(rows + bytes(rng.randint(1, 3000)))
    return chunk


def _data_in_pieces(chunks: list[tuple[bytes, bytes]], rng: Rng) -> list[tuple[bytes, bytes]]:
    result = []
    for name, data in chunks:
        if name != b"IDAT":
            result.append((name, data))
            continue
        cut = rng.randint(0, len(data))
        result += [(name, data[:cut]), (name, data[cut:])]
    return result


# JPEG


def split_jpeg(content: bytes) -> list[bytes]:
    """Segments, the coded data of scans with their headers."""
    segments, at = [], 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xD9:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if content[at + 1] == 0xDA:
            while end + 1 < len(content) and (
                content[end] != 0xFF or content[end + 1] in (0, *range(0xD0, 0xD8))
            ):
                end += 1
        segments.append(content[at:end])
        at = max(end, at + 2)
    return segments


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", (len(data) + 2) & 0xFFFF) + data


def mutate_jpeg(content: bytes, rng: Rng) -> bytes:
    """Segments changed, dropped, doubled or moved."""
    segments = split_jpeg(content)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(segments)) if segments else 0
        what = rng.random()
        if not segments or what < 0.3:
            segments.insert(place, _random_segment(rng))
        elif what < 0.4:
            del segments[place]
        elif what < 0.5:
            segments.insert(rng.randrange(len(segments) + 1), segments[place])
        elif what < 0.6:
            segments.append(segments.pop(place))
        else:
            old = segments[place]
            data = mutate_bytes(old[4:], rng)
            keep = rng.random() < 0.3 or old[1] == 0xDA
            segments[place] = old[:4] + data if keep else segment(old[1], data)
    end = rng.choice((b"\xff\xd9", b"\xff\xd9", b"\xff\xd9", b"\xff\xd9rest", b"\xff\xff\xd9", b""))
    result = b"\xff\xd8" + b"".join(segments) + end
    return mutate_bytes(result, rng) if rng.random() < 0.1 else result


def _random_segment(rng: Rng) -> bytes:
    bodies = (
        (0xE1, b"Exif\0\0" + random_exif(rng)),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + random_xmp(rng)),
        (0xE1, rng.randbytes(rng.choice(_LENGTHS))),
        (0xE0, b"JFIF\0" + rng.randbytes(rng.choice(_LENGTHS))),
        (0xE2, b"MPF\0" + random_exif(rng)),
        (0xE2, b"ICC_PROFILE\0" + rng.randbytes(3)),
        (0xED, b"Photoshop 3.0\0" + rng.randbytes(9)),
        (0xEE, b"Adobe" + rng.randbytes(rng.choice(_LENGTHS))),
        (0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([rng.randint(0, 3)])),
        (0xFE, rng.randbytes(rng.choice(_LENGTHS))),
        (0xDD, struct.pack(">H", rng.randint(0, 3))),
        (rng.randrange(0xC0, 0x100), rng.randbytes(rng.choice(_LENGTHS))),
    )
    return segment(*rng.choice(bodies))


# Metadata


def random_exif(rng: Rng) -> bytes:
    """EXIF data, mostly right, of an orientation of every type and kind of damage."""
    order = rng.choice("<>")
    entries = [(0x010F, 2, 6, b"\0\0\0\x1a")] * rng.randint(0, 1)
    for _ in range(rng.choice((1, 1, 1, 0, 2))):
        kind = rng.choice((3, 3, 3, 3, *range(15), 65535))
        value = rng.choice((*range(1, 9), 0, 9, 255, 256))
        packed = struct.pack(order + "H", value) if kind in (3, 8) else b""
        packed = packed or (bytes([value & 255]) if kind in (1, 6, 7) else b"")
        packed = packed or struct.pack(order + "I", value)
        number = rng.choice((1, 1, 1, 1, 1, 0, 2, 3, 2**31))
        entries.append((0x0112, kind, number, packed.ljust(4, b"\0")))
    begin = rng.choice((8, 8, 8, 8, 8, 0, 4, 9, 2**31, 2**32 - 1))
    count = len(entries) if rng.random() < 0.85 else rng.choice((0, 1, 5, 65535))
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    data = magic if rng.random() < 0.9 else rng.choice((b"II\0*", b"MM*\0", b"II+\0", b"xx*\0"))
    data += struct.pack(order + "I", begin) + struct.pack(order + "H", count)
    data += b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in entries)
    data += struct.pack(order + "I", 0) + b"maker\0"
    if rng.random() < 0.15:
        data = data[: rng.randint(0, len(data))]
    if rng.random() < 0.15:
        data = mutate_bytes(data, rng)
    return b"Exif\0\0" * rng.choice((0, 0, 0, 1, 2, 3)) + data


def random_xmp(rng: Rng) -> bytes:
    value = rng.choice((b"1", b"3", b"6", b"8", b"0", b"9", b"x", b""))
    form = rng.choice((b'tiff:Orientation="%s"', b"<tiff:Orientation>%s<", b"tiff:Orientation=%s"))
    return b"<x> " * rng.randint(0, 1) + form % value * rng.randint(0, 2)


def mutate_bytes(data: bytes, rng: Rng) -> bytes:
    """A byte or a few changed, put in or taken out."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place, what = rng.randint(0, len(result)), rng.random()
        if what < 0.6 and place < len(result):
            result[place] = rng.choice((result[place] ^ 1 << rng.randrange(8), rng.choice(_NASTY)))
        elif what < 0.75:
            result[place:place] = rng.randbytes(rng.randint(1, 3))
        elif what < 0.9:
            del result[place : place + rng.randint(1, 3)]
        else:
            del result[place:]
    return bytes(result)


def add_metadata(content: bytes, rng: Rng) -> bytes:
    """The same pixels, with one or two things said of them."""
    for _ in range(rng.randint(1, 2)):
        if content.startswith(SIGNATURE):
            chunks = split_png(content)
            chunks.insert(rng.randint(1, len(chunks) - 1), _random_chunk(rng))
            content = join_png(chunks)
        else:
            content = content[:2] + _random_segment(rng) + content[2:]
    return content


def mutate(content: bytes, rng: Rng) -> bytes:
    """A file that is nearly like this one."""
    whole = content[:2] == b"\xff\xd8" or len(split_png(content)) > 1
    what = rng.random()
    changes: Callable[[bytes, Rng], bytes] = mutate_bytes
    if what < 0.4 and whole:
        changes = add_metadata
    elif what < 0.85:
        changes = mutate_png if content.startswith(SIGNATURE) else mutate_jpeg
    return changes(content, rng)
