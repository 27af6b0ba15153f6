"""Files that are damaged, lie about their size, or have more than 8 bits for each value."""

from __future__ import annotations

import io
import os
import struct
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cmt.calib_data.decoding import decode, read_image
from cmt.calib_data.image_range import parse_range
from cmt.calib_data.limits import UnreadableImageError
from cmt.calib_data.png_chunks import SIGNATURE, unpacked_size
from cmt.calib_data.preprocessing import to_rgb
from cmt.calib_data.sources import FolderImages
from cmt.errors import InputError

Chunk = tuple[bytes, bytes]


def png(width: int, height: int, *more: Chunk, depth: int = 8, colour: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    channels = {0: 1, 2: 3, 6: 4}[colour]
    body = zlib.compress(bytes(min(10**5, unpacked_size(width, height, depth * channels, False))))
    return joined([(b"IHDR", header), *more, (b"IDAT", body), (b"IEND", b"")])


def joined(chunks: list[Chunk], wrong: bytes = b"") -> bytes:
    """The chunks with their checksums, one of them wrong."""
    content = SIGNATURE
    for name, data in chunks:
        checksum = zlib.crc32(name + data) ^ (name == wrong)
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)
    return content


PARTS: list[Chunk] = [
    (b"IHDR", struct.pack(">IIBBBBB", 3, 2, 8, 0, 0, 0, 0)),
    (b"tEXt", b"Comment\0hello"),
    (b"IDAT", zlib.compress(b"\0abc\0def")),
    (b"tIME", bytes(7)),
    (b"IEND", b""),
]


def test_a_whole_png_is_read_and_what_follows_it_ignored() -> None:
    for content in (joined(PARTS), joined(PARTS) + b"rest"):
        assert np.asarray(decode(content)).tobytes() == b"abcdef"


@pytest.mark.parametrize("name", [name for name, _ in PARTS])
def test_a_png_with_a_wrong_checksum_is_refused(name: bytes) -> None:
    with pytest.raises(UnreadableImageError, match="checksum"):
        decode(joined(PARTS, wrong=name))


@pytest.mark.parametrize("cut", [1, 4, 12, 13, 31, 40])
def test_a_png_without_its_end_is_refused(cut: int) -> None:
    with pytest.raises(UnreadableImageError, match="too early"):
        decode(joined(PARTS)[:-cut])


@pytest.mark.parametrize(
    "body",
    [
        zlib.compress(b"\0abc\0de"),
        zlib.compress(b"\0abc\0defg"),
        zlib.compress(b"\0abc\0def")[:-1],
        zlib.compress(b"\0abc\0def") + b"x",
        b"",
        b"nothing",
    ],
)
def test_a_png_of_other_than_its_pixels_is_refused(body: bytes) -> None:
    parts = [(name, body if name == b"IDAT" else data) for name, data in PARTS]
    with pytest.raises(UnreadableImageError, match=r"damaged|cannot hold"):
        decode(joined(parts))


def test_texts_of_any_size_cost_a_png_nothing() -> None:
    bomb = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(20_000_000), 9))
    xmp = (b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(bytes(20_000_000), 9))
    content = joined([PARTS[0], *[bomb] * 20, *[xmp] * 5, *PARTS[1:]])
    tracemalloc.start()
    assert decode(content).size == (3, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


# Sizes


@pytest.mark.parametrize(
    "content",
    [
        *(b"P%d %d %d 255\n" % (kind, *size)
          for kind in (1, 2, 3, 4, 5, 6)
          for size in ((178_956_970, 1), (1, 178_956_970), (13_000, 13_000), (10**9, 10**9))),
        b"P5 13000 13000 65535\n",
        b"Pf 13000 13000 -1.0\n",
        *(png(*size, depth=depth, colour=colour)
          for size in ((178_956_970, 1), (1, 178_956_970), (13_000, 13_000), (2**31 - 1, 1))
          for depth, colour in ((8, 0), (16, 6), (8, 2))),
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 13000, 13000, 1, 24, *[0] * 6),
        b"GIF89a" + struct.pack("<HHBBB", 13000, 13000, 0, 0, 0) + b","
        + struct.pack("<HHHHB", 0, 0, 13000, 13000, 0) + b"\x08\x01\x00\x00;",
        b"\xff\xd8\xff\xc0\0\x0b\x08" + struct.pack(">HHB", 13000, 13000, 1) + b"\1\x11\0"
        + b"\xff\xda\0\x08\1\1\0\0?\0\xff\xd9",
    ],
    ids=lambda content: content[:40].hex(),
)  # fmt: skip
def test_a_size_that_the_bytes_cannot_hold_is_refused_before_decoding(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded(self: Image.Image) -> None:
        raise AssertionError("memory would be taken")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    path = tmp_path / "a.ppm"
    path.write_bytes(content)
    with pytest.raises(Exception, match=r"pixels|bomb"):
        read_image(path)
    with pytest.raises(UnreadableImageError, match=r"a\.ppm"):
        FolderImages(tmp_path).load(0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_plain_pictures_are_small_and_read(kind: str, mode: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {}
    if kind == "TIFF":
        options = {"compression": "group4" if mode == "1" else "tiff_deflate"}
    if kind == "JPEG":
        options = {"progressive": True, "optimize": True, "quality": 1}
    image = Image.new(mode if kind != "JPEG" or mode != "1" else "L", (3000, 2000), "white")
    image.save(tmp_path / "a", kind, **options)
    assert read_image(tmp_path / "a").size == (3000, 2000)


def test_a_jpeg_of_more_scans_than_anybody_needs_is_refused_at_once() -> None:
    file = io.BytesIO()
    Image.new("L", (2000, 2000)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    begin = time.perf_counter()
    with pytest.raises(UnreadableImageError, match="scans"):
        decode(content[:-2] + last * 3000 + b"\xff\xd9")
    assert time.perf_counter() - begin < 1
    assert decode(content[:-2] + last + b"\xff\xd9").size == (2000, 2000)


@pytest.mark.parametrize("progressive", [True, False])
def test_a_cut_jpeg_is_refused(progressive: bool) -> None:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(file, "JPEG", progressive=progressive)
    content = file.getvalue()
    for cut in (2, 3, 30, len(content) // 2):
        with pytest.raises(UnreadableImageError, match="too early"):
            decode(content[:-cut])
    if progressive:
        with pytest.raises(UnreadableImageError, match="scans are missing"):
            decode(content[: content.rindex(b"\xff\xda")] + b"\xff\xd9")


def test_a_pipe_that_took_a_files_place_does_not_wait(tmp_path: Path) -> None:
    Image.new("L", (3, 2)).save(tmp_path / "a.png")
    source = FolderImages(tmp_path)
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match="no file"):
        source.load(0)


# More than 8 bits


def grey(path: Path) -> np.ndarray:
    return np.asarray(to_rgb(read_image(path)))[..., 0]


LEVELS = np.linspace(0, 1, 256).reshape(16, 16)


def ramp(most: float) -> np.ndarray:
    return np.round(LEVELS * most)


def save_deep(path: Path, values: np.ndarray, **options: Any) -> None:
    Image.fromarray(values).save(path, **options)


@pytest.mark.parametrize("bits", [8, 9, 10, 12, 14])
@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_fewer_bits_in_sixteen_are_refused_where_nothing_says_so(
    bits: int, suffix: str, tmp_path: Path
) -> None:
    save_deep(tmp_path / f"a.{suffix}", ramp(2**bits - 1).astype(np.uint16))
    with pytest.raises(UnreadableImageError, match="scale"):
        read_image(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_read(suffix: str, tmp_path: Path) -> None:
    save_deep(tmp_path / f"a.{suffix}", ramp(65535).astype(np.uint16))
    np.testing.assert_allclose(grey(tmp_path / f"a.{suffix}"), ramp(255), atol=1)


@pytest.mark.parametrize("bits", [8, 9, 10, 12, 14])
@pytest.mark.parametrize("upper", [True, False])
def test_a_png_says_by_sbit_how_many_bits_count(bits: int, upper: bool, tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add(b"sBIT", bytes([bits]))
    values = ramp(2**bits - 1).astype(np.uint16) << (16 - bits if upper else 0)
    save_deep(tmp_path / "a.png", values, pnginfo=info)
    np.testing.assert_allclose(grey(tmp_path / "a.png"), ramp(255), atol=1)


@pytest.mark.parametrize("maxval", [1, 15, 100, 1023, 4095, 40_000, 65_535])
def test_a_pgm_says_its_scale_by_maxval(maxval: int, tmp_path: Path) -> None:
    values = ramp(maxval).astype(">u2" if maxval > 255 else np.uint8)
    (tmp_path / "a.pgm").write_bytes(b"P5 16 16 %d\n" % maxval + values.tobytes())
    expected = ramp(maxval) / maxval * 255
    np.testing.assert_allclose(grey(tmp_path / "a.pgm"), expected, atol=1)


@pytest.mark.parametrize("most", [1.0, 255.0, 65535.0, 1e6])
def test_floating_point_is_read_by_its_stated_range_alone(most: float, tmp_path: Path) -> None:
    values = (LEVELS * most).astype(np.float32)
    save_deep(tmp_path / "a.tif", values)
    with pytest.raises(UnreadableImageError, match="no stated range"):
        read_image(tmp_path / "a.tif")
    save_deep(tmp_path / "b.tif", values, tiffinfo={340: 0.0, 341: most})
    np.testing.assert_allclose(grey(tmp_path / "b.tif"), ramp(255), atol=1)


@pytest.mark.parametrize("most", [1, 255, 4095, 65_535, 2**31 - 1])
def test_thirty_two_bits_are_read_by_their_stated_range_alone(most: int, tmp_path: Path) -> None:
    values = ramp(most).astype(np.int32)
    save_deep(tmp_path / "a.tif", values)
    with pytest.raises(UnreadableImageError, match="no stated range"):
        read_image(tmp_path / "a.tif")
    save_deep(tmp_path / "b.tif", values, tiffinfo={340: 0, 341: most})
    expected = ramp(most) / most * 255
    np.testing.assert_allclose(grey(tmp_path / "b.tif"), expected, atol=1)


def test_a_tiff_of_twelve_bits_in_sixteen_may_say_so(tmp_path: Path) -> None:
    save_deep(tmp_path / "a.tif", ramp(4095).astype(np.uint16), tiffinfo={341: 4095})
    np.testing.assert_allclose(grey(tmp_path / "a.tif"), ramp(255), atol=1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    values = np.full((4, 4), value, np.float32)
    save_deep(tmp_path / "a.tif", values, tiffinfo={340: 0.0, 341: 1.0})
    with pytest.raises(UnreadableImageError, match="finite"):
        read_image(tmp_path / "a.tif")


def test_a_float_pnm_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pfm").write_bytes(b"Pf\n2 2\n-1.0\n" + np.ones(4, "<f4").tobytes())
    with pytest.raises(UnreadableImageError, match="no stated range"):
        read_image(tmp_path / "a.pfm")


def test_dark_colours_of_sixteen_bits_are_refused(tmp_path: Path) -> None:
    for most, bright in ((4095, False), (65535, True)):
        rows = np.random.default_rng(0).integers(0, most, (4, 12)).astype(">u2")
        parts = [
            (b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))),
            (b"IEND", b""),
        ]
        (tmp_path / "a.png").write_bytes(joined(parts))
        if bright:
            assert read_image(tmp_path / "a.png").size == (4, 4)
        else:
            with pytest.raises(UnreadableImageError, match="scale"):
                read_image(tmp_path / "a.png")


def test_a_raw_photos_preview_is_no_image(tmp_path: Path) -> None:
    Image.new("RGB", (16, 12)).save(tmp_path / "a.tif", tiffinfo={254: 1})
    with pytest.raises(UnreadableImageError, match="preview"):
        read_image(tmp_path / "a.tif")


# A scale that their owner states


TWELVE = (0.0, 4095.0)


def by_range(path: Path, image_range: tuple[float, float]) -> tuple[np.ndarray, int | None]:
    image = read_image(path, image_range)
    return np.asarray(to_rgb(image))[..., 0], image.info.get("outside")


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_twelve_bits_in_sixteen_are_read_by_a_stated_range(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    save_deep(path, ramp(4095).astype(np.uint16))
    pixels, outside = by_range(path, TWELVE)
    np.testing.assert_allclose(pixels, ramp(255), atol=1)
    assert (pixels.min(), pixels.max(), outside) == (0, 255, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("image_range", [(0.0, 1000.0), (-500.0, 500.0)])
def test_floating_point_and_32_bits_are_read_by_a_stated_range(
    dtype: type, image_range: tuple[float, float], tmp_path: Path
) -> None:
    low, high = image_range
    save_deep(tmp_path / "a.tif", np.round(low + LEVELS * (high - low)).astype(dtype))
    pixels, outside = by_range(tmp_path / "a.tif", image_range)
    np.testing.assert_allclose(pixels, ramp(255), atol=1)
    assert outside == 0


def test_a_float_pnm_is_read_by_a_stated_range(tmp_path: Path) -> None:
    values = np.array([0, 0.5, 1, 2], "<f4")
    (tmp_path / "a.pfm").write_bytes(b"Pf\n4 1\n-1.0\n" + values.tobytes())
    pixels, outside = by_range(tmp_path / "a.pfm", (0.0, 1.0))
    assert (pixels.tolist(), outside) == ([[0, 127, 255, 255]], 1)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_values_outside_of_a_stated_range_are_clipped_and_counted(
    suffix: str, tmp_path: Path
) -> None:
    values = np.array([[99, 100, 600, 1100, 1101, 65_535]], np.uint16)
    save_deep(tmp_path / f"a.{suffix}", values)
    pixels, outside = by_range(tmp_path / f"a.{suffix}", (100.0, 1100.0))
    assert (pixels.tolist(), outside) == ([[0, 0, 127, 255, 255, 255]], 3)


def test_white_that_is_zero_is_turned_after_a_stated_range(tmp_path: Path) -> None:
    values = np.array([[0, 4095, 5000]], np.uint16)
    save_deep(tmp_path / "a.tif", values, tiffinfo={262: 0})
    pixels, outside = by_range(tmp_path / "a.tif", TWELVE)
    assert (pixels.tolist(), outside) == ([[255, 0, 0]], 1)


def test_a_file_that_states_its_scale_keeps_it(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add(b"sBIT", bytes([12]))
    save_deep(tmp_path / "a.png", ramp(4095).astype(np.uint16), pnginfo=info)
    save_deep(tmp_path / "b.tif", ramp(4095).astype(np.uint16), tiffinfo={341: 4095})
    (tmp_path / "c.pgm").write_bytes(b"P5 16 16 4095\n" + ramp(4095).astype(">u2").tobytes())
    save_deep(tmp_path / "d.png", ramp(255).astype(np.uint8))
    save_deep(tmp_path / "e.tif", np.dstack([ramp(255).astype(np.uint8)] * 3))
    for path in sorted(tmp_path.iterdir()):
        pixels, outside = by_range(path, (0.0, 10.0))
        np.testing.assert_allclose(pixels, ramp(255), atol=1, err_msg=path.name)
        assert outside is None, path.name


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_range_makes_values_finite(value: float, tmp_path: Path) -> None:
    save_deep(tmp_path / "a.tif", np.full((4, 4), value, np.float32))
    with pytest.raises(UnreadableImageError, match="finite"):
        read_image(tmp_path / "a.tif", (0.0, 1.0))


def test_colours_of_sixteen_bits_are_not_read_by_a_range(tmp_path: Path) -> None:
    rows = np.full((4, 12), 65_535, ">u2")
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))),
        (b"IEND", b""),
    ]
    (tmp_path / "a.png").write_bytes(joined(parts))
    (tmp_path / "b.ppm").write_bytes(b"P6 4 4 65535\n" + rows.tobytes())
    for path in sorted(tmp_path.iterdir()):
        assert read_image(path).size == (4, 4)
        with pytest.raises(UnreadableImageError, match="grey images"):
            read_image(path, TWELVE)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "pfm"])
def test_the_reason_why_a_file_without_a_scale_is_left_out_names_the_option(
    suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "pfm":
        path.write_bytes(b"Pf\n2 2\n-1.0\n" + np.ones(4, "<f4").tobytes())
    else:
        save_deep(path, ramp(4095).astype(np.float32 if suffix == "tif" else np.uint16))
    with pytest.raises(UnreadableImageError, match="--image-range"):
        read_image(path)


@pytest.mark.parametrize(
    "text",
    ["", "1", "1,1", "2,1", "0,nan", "0,inf", "-1e308,1e308", "a,b", "0,1,2", "0;1", "1_0,2_0"],
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--image-range must be two finite numbers"):
        parse_range(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("0,4095", (0, 4095)), ("-1.5, 1e3", (-1.5, 1000)), (".5,1.", (0.5, 1))]
)
def test_a_range_is_two_numbers(text: str, expected: tuple[float, float]) -> None:
    assert parse_range(text) == expected
