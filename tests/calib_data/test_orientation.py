"""Which way up an image is, by EXIF and XMP data of every kind and damage."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cmt.calib_data.decoding import decode
from cmt.calib_data.orientation import (
    UnreadableExifError,
    exif_orientation,
    from_raw_profile,
    orientation,
    orientation_of,
)
from cmt.calib_data.preprocessing import to_rgb


def exif(value: int = 6, kind: int = 3, count: int = 1, order: str = "<", **other: int) -> bytes:
    magic = b"II*\0" if order == "<" else b"MM\0*"
    code = {3: "H", 8: "h", 4: "I", 9: "i", 6: "b", 1: "B", 13: "I"}.get(kind, "I")
    packed = struct.pack(order + code, value).ljust(4, b"\0")
    entries = struct.pack(order + "HHI", 0x0112, kind, count) + packed
    head = struct.pack(order + "IH", other.get("begin", 8), other.get("entries", 1))
    return magic + head + entries + bytes(4)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [3, 4, 6, 8, 9, 13])
@pytest.mark.parametrize("value", range(1, 9))
def test_whole_numbers_of_any_type_are_read(value: int, kind: int, order: str) -> None:
    for prefix in (b"", b"Exif\0\0", b"Exif\0\0" * 2):
        assert exif_orientation(prefix + exif(value, kind, order=order)) == value


@pytest.mark.parametrize(("value", "kind"), [(0, 3), (9, 3), (65535, 3), (-3, 8), (-1, 9), (-1, 6)])
def test_numbers_that_are_no_orientation_are_upright(value: int, kind: int) -> None:
    assert exif_orientation(exif(value, kind)) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"broken",
        b"II",
        b"II*\0",
        b"II\0*" + exif()[4:],
        b"Exif\0\0" * 3 + exif(),
        exif(begin=2**31),
        exif(begin=1000),
        exif()[:12],
        exif()[:18],
        exif()[:19],
        exif(count=2),
        exif(count=0),
        exif(count=2**32 - 1),
        exif(kind=1),
        exif(kind=2),
        exif(kind=5),
        exif(kind=11),
        exif(kind=77),
    ],
    ids=lambda data: data.hex()[:60],
)
def test_damaged_data_is_upright_and_said(data: bytes) -> None:
    with pytest.raises(UnreadableExifError):
        exif_orientation(data)
    assert orientation(data, b'tiff:Orientation="6"') == (1, False)


def test_entries_before_a_cut_are_read() -> None:
    assert exif_orientation(exif(entries=40)) == 6


XMP = b'<x tiff:Orientation="8"/>'


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", 8), (exif(1), 1), (exif(6), 6), (exif(0), 1), (exif(entries=0), 8), (b"x", 1)],
)
def test_xmp_is_asked_only_where_exif_has_no_orientation(data: bytes, expected: int) -> None:
    assert orientation(data, XMP)[0] == expected


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        (b"\nexif\n 14\n%s\n", True),
        (b"\nexif\n 14\n%s", True),
        (b"exif 14 %s", False),
        (b"\nexif\n 14\n%sx", False),
        (b"\nexif\n 14\n%s0", False),
    ],
)
def test_raw_profiles_are_hexadecimal_or_unreadable(text: bytes, whole: bool) -> None:
    data = from_raw_profile(text % exif().hex().encode())
    assert orientation(data, XMP) == ((6, True) if whole else (1, False))


def stored(kind: str, data: bytes, jfif: bool = True) -> bytes:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    content = file.getvalue()
    if kind == "JPEG":
        segment = b"\xff\xe1" + struct.pack(">H", len(data) + 8) + b"Exif\0\0" + data
        head = content[:20] if jfif else content[:2]
        return head + segment + content[20:]
    chunk = b"eXIf" + data
    around = struct.pack(">I", len(data)), struct.pack(">I", zlib.crc32(chunk))
    return content[:33] + around[0] + chunk + around[1] + content[33:]  # behind IHDR


@pytest.mark.parametrize("jfif", [True, False])
@pytest.mark.parametrize(
    "data", [b"broken", exif()[:9], exif(count=2), b"II*\0\xff\xff\xff\xff", b"MM"]
)
def test_a_broken_header_costs_no_image(data: bytes, jfif: bool) -> None:
    for content in (stored("JPEG", data, jfif), stored("PNG", data)):
        image = decode(content)
        assert to_rgb(image).size == (6, 4)
        assert orientation_of(image) == (1, False)


@pytest.mark.parametrize("jfif", [True, False])
def test_a_right_header_turns_wherever_it_stands(jfif: bool) -> None:
    for content in (
        stored("JPEG", exif(), jfif),
        stored("PNG", exif()),
        stored("PNG", b"Exif\0\0" + exif()),
    ):
        assert to_rgb(decode(content)).size == (4, 6)


def test_an_image_is_turned_once() -> None:
    rgb = to_rgb(decode(stored("PNG", exif())))
    np.testing.assert_array_equal(np.asarray(to_rgb(rgb)), np.asarray(rgb))
