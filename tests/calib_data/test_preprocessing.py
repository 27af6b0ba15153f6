"""Any image becomes the network's input, by the release's rule."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cmt import InputError
from cmt.calib_data.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    INTERPOLATIONS,
    Preprocessing,
    to_rgb,
)
from cmt.calib_data.sources import FolderImages
from cmt.variants import FAMILIES, FLYEGLE, Family

RELEASE_SIZES = {160: 182, 192: 219, 224: 256, 256: 292}
COLOUR = (200, 100, 50)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def release_rule(
    image: Image.Image, size: int, filter: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    """Resize(shorter side, filter) and CenterCrop as the release's torchvision does them."""
    shorter = int(256 / 224 * size)
    width, height = image.size
    if width <= height:
        width, height = shorter, int(shorter * height / width)
    else:
        width, height = int(shorter * width / height), shorter
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    # The Pillow of its time always changed the width first; later ones choose by the shape.
    resized = image.resize((width, image.height), filter).resize((width, height), filter)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(("size", "shorter"), RELEASE_SIZES.items())
def test_shorter_side_follows_the_releases_rule(size: int, shorter: int) -> None:
    prepare = Preprocessing.for_model((size, size), {})
    assert prepare.resize == (shorter, shorter)
    assert (prepare.mean, prepare.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert prepare.apply(noise(300, 200)).shape == (size, size, 3)


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400), size=st.sampled_from([32, 160, 224]))
def test_pixels_are_those_of_the_releases_transforms(width: int, height: int, size: int) -> None:
    if max(width, height) > 64 * min(width, height):
        return
    image = noise(width, height)
    mine = Preprocessing.for_model((size, size), {}).apply(image)
    np.testing.assert_array_equal(mine, release_rule(image, size))


@settings(max_examples=20, deadline=None)
@given(width=st.integers(20, 400), height=st.integers(20, 400), size=st.sampled_from([160, 224]))
def test_flyegles_images_are_resized_as_its_own_evaluation_does(
    width: int, height: int, size: int
) -> None:
    image = noise(width, height)
    mine = Preprocessing.for_model((size, size), {}, FLYEGLE).apply(image)
    np.testing.assert_array_equal(mine, release_rule(image, size, Image.Resampling.BILINEAR))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_weights_own_interpolation_goes_before_the_familys(family: Family) -> None:
    assert INTERPOLATIONS == ("bicubic", "bilinear")
    for name in INTERPOLATIONS:
        prepare = Preprocessing.for_model((32, 32), {"interpolation": name}, family)
        assert prepare.interpolation == name
        assert prepare.describe(1)["resize"]["filter"] == f"pillow-{name}"
        assert Preprocessing.from_description(prepare.describe(1)) == prepare
        more = Preprocessing.for_model((32, 32), {"interpolation": f"{name}, antialias (torch)"})
        assert more.interpolation == name
    assert Preprocessing.for_model((32, 32), {}, family).interpolation == family.interpolation


def test_resized_width_is_rounded_down_exactly() -> None:
    assert int(99 * (182 / 21)) == 857, "a pair of sides where dividing first loses a pixel"
    assert int(182 * 99 / 21) == 858
    image = noise(99, 21)
    mine = Preprocessing.for_model((160, 160), {}).apply(image)
    np.testing.assert_array_equal(mine, release_rule(image, 160))


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    size=st.tuples(st.sampled_from([32, 64, 96]), st.sampled_from([32, 64, 160])),
    ratio=st.sampled_from([1, 256 / 224, 1.5]),
)
def test_any_image_size_gives_the_networks_shape(
    width: int, height: int, size: tuple[int, int], ratio: float
) -> None:
    box = (int(size[0] * ratio), int(size[1] * ratio))
    prepare = Preprocessing(size, box)
    pixels = prepare.apply(Image.new("RGB", (width, height), COLOUR))
    assert pixels.shape == (*size, 3)
    assert pixels.dtype == np.uint8
    # A crop that left the image would bring in black.
    assert (pixels == COLOUR).all()


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 2), (2, 1), (1, 65_000), (65_000, 1), (3, 5_000), (4_000, 3_000)]
)
def test_extreme_image_sizes(size: tuple[int, int]) -> None:
    pixels = Preprocessing.for_model((160, 160), {}).apply(Image.new("RGB", size, COLOUR))
    assert pixels.shape == (160, 160, 3)
    assert (pixels == COLOUR).all()


@pytest.mark.parametrize("upright", [False, True])
def test_of_a_long_strip_the_middle_is_kept(upright: bool) -> None:
    pixels = np.zeros((1, 20_001, 3), np.uint8)
    pixels[:, 9_990:10_011] = 255
    if upright:
        pixels = pixels.transpose(1, 0, 2)
    out = Preprocessing.for_model((32, 32), {}).apply(Image.fromarray(pixels))
    assert (out == 255).all()


def test_a_wide_image_loses_its_sides_and_not_its_middle() -> None:
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = 255
    out = Preprocessing((96, 96), (96, 96)).apply(Image.fromarray(pixels))
    assert (out[:, 3:-3] == 255).all()
    out = Preprocessing((96, 288), (96, 288)).apply(Image.fromarray(pixels))
    assert (out[:, :90] == 0).all()
    assert (out[:, -90:] == 0).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"])
def test_colour_modes_keep_their_colour(mode: str) -> None:
    image = Image.new("RGB", (8, 6), COLOUR)
    if mode == "RGBa":
        image = image.convert("RGBA")
    rgb = to_rgb(image.convert(mode))
    assert (rgb.mode, rgb.size) == ("RGB", (8, 6))
    assert np.abs(np.asarray(rgb).astype(int) - COLOUR).max() <= 4


@pytest.mark.parametrize(
    ("mode", "value", "grey"),
    [
        ("1", 1, 255),
        ("L", 77, 77),
        ("LA", (77, 0), 77),
        ("La", (77, 255), 77),
        ("I;16", 77 * 256 + 200, 77),
        ("I;16B", 77 * 256 + 200, 77),
        ("I", 77 * 256, 77),
        ("I", 70_000, 255),
        ("I", -5, 0),
        ("F", 77.4, 77),
        ("F", 1e9, 255),
        ("F", -1.0, 0),
    ],
)
def test_grey_modes_keep_their_brightness(mode: str, value: object, grey: int) -> None:
    rgb = to_rgb(Image.new(mode, (3, 2), value))  # type: ignore[arg-type]
    assert (rgb.mode, rgb.size) == ("RGB", (3, 2))
    assert (np.asarray(rgb) == grey).all()


def test_alpha_is_dropped_not_blended() -> None:
    rgb = to_rgb(Image.new("RGBA", (2, 2), (*COLOUR, 0)))
    assert (np.asarray(rgb) == COLOUR).all()


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *COLOUR])
    (tmp_path / "images").mkdir()
    image.save(tmp_path / "images" / "p.png", transparency=1)
    source = FolderImages(tmp_path / "images")
    assert (np.asarray(to_rgb(source.load(0))) == COLOUR).all()
    with Image.open(tmp_path / "images" / "p.png") as opened:
        assert "transparency" in opened.info
        assert (np.asarray(to_rgb(opened)) == COLOUR).all()


def stored_as(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Rows and columns as a camera stores them under an EXIF orientation."""
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, suffix: str, tmp_path: Path) -> None:
    upright = np.asarray(noise(5, 3))
    image = Image.fromarray(np.ascontiguousarray(stored_as(upright, orientation)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True, "exact": True} if suffix == "webp" else {}
    image.save(tmp_path / f"a.{suffix}", exif=exif, **options)
    np.testing.assert_array_equal(np.asarray(to_rgb(FolderImages(tmp_path).load(0))), upright)


def test_exif_orientation_of_sixteen_bit_images() -> None:
    values = np.arange(6, dtype=np.uint16).reshape(2, 3) * 256
    image = Image.fromarray(np.rot90(values).copy())
    assert image.mode == "I;16"
    image.getexif()[0x0112] = 6
    assert (np.asarray(to_rgb(image))[..., 0] == values // 256).all()


def test_to_rgb_leaves_the_image_it_is_given_alone() -> None:
    image = noise(4, 3)
    image.getexif()[0x0112] = 6
    before = np.asarray(image).copy()
    to_rgb(image)
    assert image.size == (4, 3)
    np.testing.assert_array_equal(np.asarray(image), before)


def test_normalise_is_batch_norm_with_the_mean_and_std() -> None:
    prepare = Preprocessing((32, 64), (32, 64), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 64, 3), np.uint8)
    mine = prepare.normalise(images)
    expected = torch.nn.functional.batch_norm(
        torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255,
        torch.tensor(prepare.mean, dtype=torch.float64),
        torch.tensor(prepare.std, dtype=torch.float64) ** 2,
        eps=0,
    )
    assert mine.shape == (2, 3, 32, 64)
    assert mine.dtype == np.float32
    assert mine.flags.c_contiguous
    np.testing.assert_allclose(mine, expected.numpy(), atol=2e-6)


def test_metadata_is_honoured() -> None:
    metadata = {
        "resize": "178",
        "image_size": "160",
        "mean": "[0.5, 0.25, 0.125]",
        "std": "[1, 0.5, 0.25]",
        "labels": "not looked at here",
    }
    prepare = Preprocessing.for_model((160, 160), metadata)
    assert prepare.resize == (178, 178)
    assert prepare.mean == (0.5, 0.25, 0.125)
    assert prepare.std == (1.0, 0.5, 0.25)


def test_metadata_resize_scales_with_another_input_size() -> None:
    metadata = {"resize": "178", "image_size": "160"}
    prepare = Preprocessing.for_model((320, 192), metadata)
    assert prepare.resize == (356, 192 * 178 // 160)


@pytest.mark.parametrize(
    "metadata",
    [
        {"resize": "large", "image_size": "160"},
        {"resize": "178.5", "image_size": "160"},
        {"resize": "178", "image_size": "0"},
        {"resize": "178", "image_size": "-160"},
        {"resize": "-178", "image_size": "-160"},
        {"resize": "150", "image_size": "160"},
        {"interpolation": "nearest"},
        {"interpolation": "Bicubic"},
        {"interpolation": "bicubic-ish"},
        {"interpolation": ", bicubic"},
        {"interpolation": ""},
        {"mean": "0.5"},
        {"mean": "[0.5, 0.5]"},
        {"mean": "[0.5, 0.5, null]"},
        {"mean": '{"red": 0.5}'},
        {"mean": "[0.5,\n 0.5,\n NaN]"},
        {"std": "[0.2, 0.2, 0]"},
        {"std": "[0.2, 0.2, -0.2]"},
        {"std": "[0.2, 0.2, Infinity]"},
        {"std": "three\nlines\nof text"},
        {"image_range": "[4095, 0]"},
        {"image_range": "[0]"},
        {"image_range": "0,4095"},
        {"std": ""},
        {"std": "[1e-300, 1, 1]"},
        {"mean": "[1e300, 0, 0]"},
        {"mean": f"[{10**400}, 0, 0]"},
        {"mean": "[" * 100_000},
    ],
    ids=lambda metadata: str(metadata)[:40],
)
def test_bad_metadata_is_refused_in_one_line(metadata: dict[str, str]) -> None:
    with pytest.raises(InputError, match="metadata") as caught:
        Preprocessing.for_model((160, 160), metadata)
    assert "\n" not in str(caught.value)


def test_a_resize_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(InputError, match=r"resized to 99999999x99999999.*at most|more than 16384"):
        Preprocessing.for_model((160, 160), {"resize": "99999999", "image_size": "160"})


def test_description_says_what_is_done() -> None:
    prepare = Preprocessing.for_model((192, 256), {})
    described = prepare.describe(batch=4)
    assert described["resize"]["box"] == [219, 292]
    assert described["crop"]["size"] == [192, 256]
    assert described["resize"]["filter"] == "pillow-bicubic"
    assert described["mean"] == list(IMAGENET_MEAN)
    assert described["std"] == list(IMAGENET_STD)
    assert described["shape"] == [4, 3, 192, 256]
    assert Preprocessing.from_description(described) == prepare


def test_a_range_of_metadata_is_described_and_read_back() -> None:
    prepare = Preprocessing.for_model((32, 32), {"image_range": "[0, 4095]"})
    assert prepare.image_range == (0.0, 4095.0)
    described = prepare.describe(batch=1)
    assert described["image_range"] == [0.0, 4095.0]
    assert Preprocessing.from_description(described) == prepare
    assert "image_range" not in Preprocessing.for_model((32, 32), {}).describe(batch=1)


@pytest.mark.parametrize("aspect", [1, 2, 64])
def test_a_described_longest_aspect_is_the_one_that_cuts(aspect: int) -> None:
    prepare = Preprocessing((32, 96), (32, 96), longest_aspect=aspect)
    pixels = np.zeros((10, 600, 3), np.uint8)
    pixels[:, 295:305] = 255
    image = Image.fromarray(pixels)
    again = Preprocessing.from_description(prepare.describe(1))
    assert again == prepare
    np.testing.assert_array_equal(again.apply(image), prepare.apply(image))
    assert (prepare.apply(image).mean() > 200) == (aspect == 1)


def test_files_that_normalise_inside_are_fed_pixels() -> None:
    prepare = Preprocessing((32, 64), (32, 64), in_graph=True)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 64, 3), np.uint8)
    np.testing.assert_array_equal(prepare.feed(images), images)
    described = prepare.describe(batch=2)
    assert (described["dtype"], described["layout"]) == ("uint8", "NHWC")
    assert described["shape"] == [2, 32, 64, 3]
    assert Preprocessing.from_description(described) == prepare


def test_no_warnings_for_ordinary_images(tmp_path: Path) -> None:
    noise(30, 20).save(tmp_path / "a.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Preprocessing.for_model((32, 32), {}).apply(FolderImages(tmp_path).load(0))
