"""Images come out of the C++ preprocessing as out of Python's, byte for byte."""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from alike import InCpp, corpus, in_python
from image_mutations import (
    add_metadata,
    join_png,
    mutate,
    random_exif,
    random_xmp,
    seeds,
    segment,
    split_jpeg,
    split_png,
)
from PIL import Image, PngImagePlugin

from cmt.bundle.writer import describe_file, write_manifest
from cmt.calib_data.preprocessing import INTERPOLATIONS, Preprocessing
from cmt.calib_data.sources import FolderImages

Prepare = Callable[..., list[np.ndarray | str]]
SIZE, BOX = (32, 48), (40, 52)


@pytest.fixture
def prepare(runtime: Path, tmp_path: Path) -> Prepare:
    """`prepare(paths, size, box)`: what C++ makes of each file, or why it cannot."""

    def run(
        paths: list[Path],
        size: tuple[int, int] = SIZE,
        box: tuple[int, int] = BOX,
        interpolation: str = "bicubic",
    ) -> list[np.ndarray | str]:
        out = tmp_path / "pixels.bin"
        numbers = [*size, *box, 64, 1]
        result = subprocess.run(
            [runtime / "tests" / "prepare_images", *map(str, numbers), out, interpolation],
            input="".join(f"{path}\n" for path in paths),
            capture_output=True,
            text=True,
            check=True,
        )
        pixels = iter(np.fromfile(out, np.uint8).reshape(-1, *size, 3))
        lines = result.stdout.splitlines()
        return [line if line.startswith("error") else next(pixels) for line in lines]

    return run


def check(prepare: Prepare, paths: list[Path], preprocessing: Preprocessing | None = None) -> None:
    preprocessing = preprocessing or Preprocessing(SIZE, BOX)
    prepared = prepare(paths, preprocessing.size, preprocessing.resize, preprocessing.interpolation)
    assert len(prepared) == len(paths)
    for path, pixels in zip(paths, prepared, strict=True):
        with Image.open(path) as image:
            expected = preprocessing.apply(image)
        assert not isinstance(pixels, str), pixels
        np.testing.assert_array_equal(pixels, expected, err_msg=path.name)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Waves with noise, so that rounding goes either way."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = 128 + 127 * np.sin(rows[..., None] / (3, 7, 11) + columns[..., None] / (5, 2, 9))
    noisy = waves + rng.normal(0, 30, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_any_size_is_resized_as_pillow_does(
    interpolation: str, prepare: Prepare, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    sizes = [(1, 1), (1, 200), (200, 1), (3, 3000), (3000, 3), (52, 40), (48, 32), (40, 52)]
    sizes += [
        (30_000, 3),
        (40, 30_000),
        (52, 300),
        (300, 40),
        (104, 80),
        (53, 41),
        (1920, 1080),
        (224, 224),
    ]
    sizes += [tuple(rng.integers(1, 700, 2)) for _ in range(40)]
    paths = []
    for i, (width, height) in enumerate(sizes):
        paths.append(tmp_path / f"{i}-{width}x{height}.png")
        picture(int(width), int(height), i).save(paths[-1])
    check(prepare, paths, Preprocessing(SIZE, BOX, interpolation=interpolation))


@pytest.mark.parametrize(
    ("size", "box"), [((32, 32), (32, 32)), ((32, 32), (33, 33)), ((160, 160), (178, 178))]
)
def test_any_crop_is_cut_as_in_python(
    prepare: Prepare, tmp_path: Path, size: tuple[int, int], box: tuple[int, int]
) -> None:
    paths = []
    for i, shape in enumerate([(32, 32), (33, 35), (34, 47), (180, 178), (179, 191), (500, 375)]):
        paths.append(tmp_path / f"{i}.png")
        picture(*shape).save(paths[-1])
    check(prepare, paths, Preprocessing(size, box))


def png(width: int, depth: int, colour: int, rows: np.ndarray, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of any kind, also those that Pillow does not write; `more` chunks before the pixels."""
    header = width.to_bytes(4, "big") + len(rows).to_bytes(4, "big") + bytes([depth, colour])
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [(b"IHDR", header + b"\0\0\0"), *more, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
        for name, data in chunks
    )


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_every_kind_of_png_is_decoded_as_pillow_does(prepare: Prepare, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    palette = (b"PLTE", rng.integers(0, 256, 3 * 16, np.uint8).tobytes())
    kinds = [(depth, 0, 1, ()) for depth in (1, 2, 4, 8, 16)]
    kinds += [(depth, 2, 3, ()) for depth in (8, 16)]
    kinds += [(depth, 3, 1, (palette,)) for depth in (1, 2, 4)]
    kinds += [(depth, 4, 2, ()) for depth in (8, 16)]
    kinds += [(depth, 6, 4, ()) for depth in (8, 16)]
    kinds += [(8, 0, 1, ((b"tRNS", b"\0\7"),)), (4, 3, 1, (palette, (b"tRNS", b"\0\7\xff")))]
    kinds += [(8, 2, 3, ((b"gAMA", (100000).to_bytes(4, "big")),))]
    paths = []
    for depth, colour, channels, chunks in kinds:
        row_bytes = 40 * channels * depth // 8
        rows = rng.integers(0, 256, (33, row_bytes), np.uint8)
        paths.append(tmp_path / f"{depth}-{colour}-{len(chunks)}.png")
        paths[-1].write_bytes(png(40, depth, colour, rows, *chunks))
    paths.append(tmp_path / "animated.png")
    picture(40, 33).save(paths[-1], save_all=True, append_images=[picture(40, 33, 1)])
    check(prepare, paths)


def test_every_kind_of_jpeg_is_decoded_as_pillow_does(prepare: Prepare, tmp_path: Path) -> None:
    paths = []
    for mode in ("RGB", "L", "CMYK"):
        for options in ({}, {"progressive": True}, {"quality": 35, "subsampling": 0}):
            paths.append(tmp_path / f"{mode}-{len(paths)}.jpg")
            picture(201, 133).convert(mode).save(paths[-1], **options)
    for subsampling in (1, 2):
        paths.append(tmp_path / f"s{subsampling}.jpg")
        picture(97, 55).save(paths[-1], subsampling=subsampling)
    check(prepare, paths)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_images_are_turned_as_exif_or_xmp_says(
    prepare: Prepare, tmp_path: Path, suffix: str
) -> None:
    paths = []
    for orientation in (0, *range(1, 10)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        paths.append(tmp_path / f"exif-{orientation}.{suffix}")
        picture(70, 45).save(paths[-1], exif=exif)
    for text in ('tiff:Orientation="6"', "<tiff:Orientation>3</tiff:Orientation>", "tiff:Orient"):
        paths.append(tmp_path / f"xmp-{len(paths)}.{suffix}")
        if suffix == "jpg":
            picture(70, 45).save(paths[-1], xmp=text.encode())
        else:
            info = PngImagePlugin.PngInfo()
            info.add_itxt("XML:com.adobe.xmp", text)
            picture(70, 45).save(paths[-1], pnginfo=info)
    if suffix == "png":
        exif = Image.Exif()
        exif[0x0112] = 8
        data = exif.tobytes()
        info = PngImagePlugin.PngInfo()
        info.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n", zip=True)
        paths.append(tmp_path / "raw-profile.png")
        picture(70, 45).save(paths[-1], pnginfo=info)
    check(prepare, paths)


def test_damaged_and_foreign_files_are_refused_with_a_reason(
    prepare: Prepare, tmp_path: Path
) -> None:
    files: dict[str, bytes] = {"empty.jpg": b"", "text.png": b"hello"}
    for suffix, options in (("jpg", {}), ("png", {}), ("gif", {})):
        content = io.BytesIO()
        picture(120, 90).save(content, suffix.replace("jpg", "jpeg"), **options)
        files[f"whole.{suffix}"] = content.getvalue()
        files[f"half.{suffix}"] = content.getvalue()[: len(content.getvalue()) // 2]
    files["huge.png"] = png(60_000, 8, 2, np.zeros((60_000, 1), np.uint8))
    paths = [tmp_path / name for name in files]
    for path in paths:
        path.write_bytes(files[path.name])
    paths.append(tmp_path / "missing.jpg")
    results = dict(zip([path.name for path in paths], prepare(paths), strict=True))
    for name, result in results.items():
        assert isinstance(result, str) == (name not in ("whole.jpg", "whole.png")), name
        assert not isinstance(result, str) or name in result
    assert "convert it" in str(results["whole.gif"])
    assert "pixels" in str(results["huge.png"])


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_bundle_prepares_images_with_the_filter_that_its_manifest_names(
    runtime: Path, stored: Path, interpolation: str
) -> None:
    manifest = json.loads((stored / "manifest.json").read_text())
    manifest["input"]["resize"]["filter"] = f"pillow-{interpolation}"
    manifest["golden"]["max_grey_levels"] = 0
    for drawn in INTERPOLATIONS:
        preprocessing = Preprocessing.from_description(manifest["input"])
        with Image.open(stored / "golden" / "photo.jpg") as photo:
            pixels = replace(preprocessing, interpolation=drawn).apply(photo)
        np.save(stored / "golden" / "pixels.npy", pixels)
        path = stored / "golden" / "pixels.npy"
        manifest["golden"]["pixels"] = describe_file(stored, path)
        write_manifest(stored, manifest)
        command = [runtime / "cmt_check", stored]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        expected = "ok      " if drawn == interpolation else "FAILED  "
        assert f"{expected}preprocessing: differs by" in result.stdout, result.stderr


def test_photos_are_prepared_alike(prepare: Prepare, shared: Path) -> None:
    photos = FolderImages(shared / "data" / "imagenette" / "val")
    folder = shared / "data" / "imagenette" / "val"
    paths = [folder / photos.key(i) for i in range(0, len(photos), 80)]
    check(prepare, paths, Preprocessing((160, 160), (178, 178)))


# The same answer to damaged files: the upright pixels, or a refusal


@pytest.fixture
def in_cpp(runtime: Path) -> Iterator[InCpp]:
    program = InCpp(runtime / "tests" / "decode_images")
    yield program
    program.close()


def check_alike(in_cpp: InCpp, content: bytes) -> int:
    """The status of the answer that both give."""
    python, cpp = in_python(content), in_cpp(content)
    assert python.like(cpp), (content, python, cpp)
    return python.status


def test_the_corpus_is_answered_alike(in_cpp: InCpp) -> None:
    statuses = {check_alike(in_cpp, content) for content in (seeds() | corpus()).values()}
    assert statuses == {0, 1, 2}


def test_files_that_are_nearly_right_are_answered_alike(in_cpp: InCpp) -> None:
    rng, pool = Random(7), list(seeds().values())
    statuses = [check_alike(in_cpp, mutate(rng.choice(pool), rng)) for _ in range(1500)]
    assert min(statuses.count(status) for status in (0, 1, 2)) >= 20


@pytest.mark.parametrize("name", ["exif.jpg", "xmp.jpg", "exif.png", "text.png"])
def test_no_exif_header_costs_an_image_and_all_are_read_alike(in_cpp: InCpp, name: str) -> None:
    rng, plain = Random(name), seeds()[name]
    statuses = []
    for _ in range(300):
        exif, xmp = random_exif(rng), random_xmp(rng)
        if name.endswith("jpg"):
            said = [segment(0xE1, b"Exif\0\0" + exif)]
            said += [segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)] * rng.randint(0, 1)
            rest = [part for part in split_jpeg(plain) if part[1] not in (0xE0, 0xE1)]
            jfif = split_jpeg(plain)[:1] * rng.randint(0, 1)
            content = b"\xff\xd8" + b"".join([*jfif, *said, *rest]) + b"\xff\xd9"
        else:
            rest = [c for c in split_png(plain) if c[0] not in (b"eXIf", b"iTXt", b"zTXt")]
            text = (b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + xmp)
            content = join_png([rest[0], (b"eXIf", exif), text, *rest[1:]])
        statuses.append(check_alike(in_cpp, content))
    assert 0 not in statuses
    assert statuses.count(2) > 30


def test_what_is_said_of_an_image_costs_none(in_cpp: InCpp) -> None:
    rng = Random(3)
    for name, content in seeds().items():
        if name.endswith("png") and "text" not in name:
            for _ in range(20):
                check_alike(in_cpp, add_metadata(content, rng))


@pytest.mark.parametrize("name", [name for name in seeds() if name.endswith("png")])
def test_each_wrong_checksum_and_each_cut_of_a_png_is_refused_by_both(
    in_cpp: InCpp, name: str
) -> None:
    content = seeds()[name]
    chunks = split_png(content)
    assert check_alike(in_cpp, content) == 1
    assert check_alike(in_cpp, content + b"rest") == 1
    for i in range(len(chunks)):
        assert check_alike(in_cpp, join_png(chunks, wrong=i)) == 0
    for cut in range(1, 20):
        assert check_alike(in_cpp, content[:-cut]) == 0


@pytest.mark.parametrize("bits", [None, 7, 8, 10, 12, 15, 16])
@pytest.mark.parametrize("most", [255, 1023, 4095, 16_383, 16_384, 65_535])
def test_sixteen_bits_are_scaled_alike(in_cpp: InCpp, bits: int | None, most: int) -> None:
    for colour, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        values = np.linspace(most, 0, 6 * channels * 4).round().reshape(4, -1).astype(">u2")
        chunks = [] if bits is None else [(b"sBIT", bytes([bits] * channels))]
        content = png(6, 16, colour, values.view(np.uint8), *chunks)
        expected = int(most >= 16_384 or (colour == 0 and bits in (8, 10, 12, 15)))
        assert check_alike(in_cpp, content) == expected, colour


@pytest.mark.parametrize("image_range", [(0.0, 4095.0), (-3.5, 1e6), (1000.0, 1000.5)])
def test_a_stated_range_is_applied_alike(runtime: Path, image_range: tuple[float, float]) -> None:
    program = InCpp(runtime / "tests" / "decode_images", image_range)
    values = np.random.default_rng(0).integers(0, 65_536, (4, 64)).astype(">u2")
    values[0] %= 5000
    for colour, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        for bits in (None, 12, 16):
            chunks = [] if bits is None else [(b"sBIT", bytes([bits] * channels))]
            width = 64 // channels
            rows = np.ascontiguousarray(values[:, : width * channels]).view(np.uint8)
            content = png(width, 16, colour, rows, *chunks)
            python, cpp = in_python(content, image_range), program(content)
            assert python.like(cpp), (colour, bits, python, cpp)
            assert python.status == int(colour == 0), (colour, bits)
    for content in (seeds() | corpus()).values():
        assert in_python(content, image_range).like(program(content))
    program.close()


@pytest.mark.parametrize("size", [(178_956_970, 1), (13_000, 13_000), (2**31 - 1, 2**31 - 1)])
@pytest.mark.parametrize("kind", [(8, 0), (16, 6)])
def test_a_size_that_the_bytes_cannot_hold_takes_no_memory(
    runtime: Path, size: tuple[int, int], kind: tuple[int, int]
) -> None:
    header = struct.pack(">IIBBBBB", *size, *kind, 0, 0, 0)
    check_frugal(
        runtime, join_png([(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")])
    )


def test_texts_of_any_size_take_no_memory(runtime: Path) -> None:
    chunks = split_png(seeds()["grey.png"])
    bomb = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(8_000_000), 9))
    xmp = (b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(bytes(8_000_000), 9))
    content = join_png([chunks[0], *[bomb] * 150, *[xmp] * 20, *chunks[1:]])
    check_frugal(runtime, content)


def check_frugal(runtime: Path, content: bytes, megabytes: int = 300) -> None:
    """An answer comes from a program that may not take more memory."""
    program = [runtime / "tests" / "decode_images"]
    result = run_limited(program, struct.pack("<I", len(content)) + content, megabytes)
    assert (result.returncode, result.stderr) == (0, b"")


def run_limited(
    command: list[str | Path], given: bytes, megabytes: int
) -> subprocess.CompletedProcess[bytes]:
    """A program of the runtime that may not take more memory."""
    if "sanitized" in str(command[0]):
        pytest.skip("a sanitizer's shadow takes terabytes of address space")
    limit = megabytes * 2**20
    return subprocess.run(
        command,
        input=given,
        capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        check=False,
    )


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("png", "L", {}),
        ("jpeg", "L", {"progressive": True}),
        ("jpeg", "CMYK", {}),
        ("jpeg", "RGB", {}),
    ],
)
def test_memory_that_does_not_suffice_is_an_error_of_the_library(
    runtime: Path, tmp_path: Path, kind: str, mode: str, options: dict[str, bool]
) -> None:
    file = io.BytesIO()
    Image.new(mode, (9000, 9000)).save(file, kind, **options)
    content = file.getvalue()
    path = tmp_path / "large"
    path.write_bytes(content)
    statuses = []
    for megabytes in (80, 160, 220, 350, 650, 2000):  # each ends at another allocation
        program: list[str | Path] = [runtime / "tests" / "decode_images"]
        result = run_limited(program, struct.pack("<I", len(content)) + content, megabytes)
        assert (result.returncode, result.stderr) == (0, b"")
        (status,) = struct.unpack("<I", result.stdout[:4])
        assert (status == 3) == result.stdout.endswith(b"out of memory: free some")
        statuses.append(status)
        numbers = [32, 48, 40, 52, 64, 1]
        program = [runtime / "tests" / "prepare_images", *map(str, numbers), tmp_path / "pixels"]
        read = run_limited(program, f"{path}\n".encode(), megabytes).stdout.decode()
        assert (f"error: {path}: out of memory: free some" in read) == (status == 3), read
    assert set(statuses) == {1, 3}
    assert (statuses[0], statuses[-1]) == (3, 1)


def test_scans_beyond_use_take_no_time(in_cpp: InCpp) -> None:
    file = io.BytesIO()
    Image.new("L", (3000, 3000)).save(file, "JPEG", progressive=True)
    parts = split_jpeg(file.getvalue())
    content = b"\xff\xd8" + b"".join([*parts, *parts[-1:] * 2000]) + b"\xff\xd9"
    assert check_alike(in_cpp, content) == 0


def test_pipes_and_devices_are_refused_without_waiting(prepare: Prepare, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    paths = [tmp_path / "pipe.png", Path("/dev/zero"), tmp_path]
    assert all(isinstance(result, str) for result in prepare(paths))
