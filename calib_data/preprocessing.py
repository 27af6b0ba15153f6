"""The one place where an image becomes the network's input.

Everything is data, so that the bundle can carry it and another language can repeat it:
decode, resize with a filter of Pillow's until the image covers the `resize` box, crop the centre,
scale to [0, 1], subtract the mean, divide by the standard deviation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from cmt import strict_json
from cmt.calib_data.image_range import ImageRange, check_range
from cmt.calib_data.orientation import ORIENTATION_KEYS, orientation_of, turned
from cmt.errors import InputError
from cmt.variants import LARGEST_SIDE, OFFICIAL, Family

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bicubic", "bilinear")
_PILLOW = "pillow-"
LONGEST_ASPECT = 64


class Resize(TypedDict):
    rule: str
    box: list[int]
    filter: str
    longest_aspect: int


class Crop(TypedDict):
    position: str
    size: list[int]


class _Stated(TypedDict, total=False):
    image_range: list[float]


class Description(_Stated):
    """The manifest's `input` but for its name; `bundle/schema` says what each field means."""

    shape: list[int]
    dtype: str
    layout: str
    colour_order: str
    exif_orientation: str
    resize: Resize
    crop: Crop
    range: list[float]
    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for one network.

    Attributes:
        size: (height, width) of the network's input in pixels.
        resize: (height, width) of the box that the image, its aspect ratio kept, is resized
            to cover before the centre is cropped. Both families use `size * 256 // 224`.
        mean, std: per channel (red, green, blue), for values in [0, 1].
        in_graph: the exported files scale, normalise and lay out by themselves, so they take
            what `apply` gives.
        longest_aspect: first, sides longer than this many times the shorter one are cut to that.
        interpolation: what resizes, `bicubic` or `bilinear`, as Pillow does it.
        image_range: the values that are grey levels 0 and 255 in files that do not say so; None
            leaves such files out.
    """

    size: tuple[int, int]
    resize: tuple[int, int]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    in_graph: bool = False
    longest_aspect: int = LONGEST_ASPECT
    interpolation: str = OFFICIAL.interpolation
    image_range: ImageRange | None = None

    @classmethod
    def for_model(
        cls, size: tuple[int, int], metadata: Mapping[str, str], family: Family = OFFICIAL
    ) -> Preprocessing:
        """The family's own rule at `size`, with what the weights' metadata says put in its place.

        Metadata keys, all optional: `resize` (shorter side at the trained `image_size`; scaled
        along for another size), `interpolation` (`bicubic` or `bilinear`), and in JSON `mean`,
        `std` and `image_range`.
        """
        resize, trained = 256, 224
        try:
            if "resize" in metadata and "image_size" in metadata:
                resize, trained = int(metadata["resize"]), int(metadata["image_size"])
            mean = _three_numbers(metadata["mean"]) if "mean" in metadata else IMAGENET_MEAN
            std = _three_numbers(metadata["std"]) if "std" in metadata else IMAGENET_STD
            image_range = _two_numbers(metadata.get("image_range"))
            interpolation = metadata.get("interpolation", family.interpolation)
            interpolation = interpolation.split(",")[0]  # "bilinear, antialias": Pillow always is
            if interpolation not in INTERPOLATIONS:
                raise ValueError(f"interpolation is not {' or '.join(INTERPOLATIONS)}")
            if not 0 < trained <= resize:
                raise ValueError(f"shorter side {resize} for input {trained}")
            if np.array(std, np.float32).min() <= 0:
                raise ValueError(f"std {std} is not positive")
        except (ValueError, TypeError) as error:
            raise InputError(f"the weights' metadata is unusable ({error}): correct it") from error
        box = (size[0] * resize // trained, size[1] * resize // trained)
        if max(box) > LARGEST_SIDE:
            raise InputError(
                f"images would be resized to {box[0]}x{box[1]}, more than {LARGEST_SIDE} pixels: "
                "choose a smaller --img-size, or correct 'resize' in the weights' metadata"
            )
        return cls(size, box, mean, std, interpolation=interpolation, image_range=image_range)

    def apply(self, image: Image) -> NDArray[np.uint8]:
        """Any image -> (height, width, 3) uint8, red first."""
        image = _without_far_ends(to_rgb(image), self.longest_aspect)
        tall, wide = self.resize
        resized = (
            max(wide, image.width * tall // image.height),
            max(tall, image.height * wide // image.width),
        )
        left = round((resized[0] - self.size[1]) / 2)
        top = round((resized[1] - self.size[0]) / 2)
        # In one call the order of the two would depend on the sizes and on Pillow's version.
        resample = _pillows(self.interpolation)
        image = image.resize((resized[0], image.height), resample).resize(resized, resample)
        box = (left, top, left + self.size[1], top + self.size[0])
        return np.asarray(image.crop(box), dtype=np.uint8)

    def normalise(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, H, W, 3) uint8 -> (B, 3, H, W) float32, what the torch network takes."""
        scaled = images.astype(np.float32) / 255
        scaled = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def feed(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """(B, H, W, 3) uint8 -> what the exported files take; see `in_graph`."""
        return images if self.in_graph else self.normalise(images)

    def describe(self, batch: int) -> Description:
        """The manifest's `input` fields that repeat this preprocessing in any language.

        `bundle/schema/manifest.schema.json` says what each word stands for.
        """
        whole = self.in_graph
        stated: _Stated = (
            {} if self.image_range is None else {"image_range": list(self.image_range)}
        )
        return {
            "shape": [batch, *self.size, 3] if whole else [batch, 3, *self.size],
            "dtype": "uint8" if whole else "float32",
            "layout": "NHWC" if whole else "NCHW",
            "colour_order": "RGB",
            "exif_orientation": "applied",
            **stated,
            "resize": {
                "rule": "cover",
                "box": list(self.resize),
                "filter": f"{_PILLOW}{self.interpolation}",
                "longest_aspect": self.longest_aspect,
            },
            "crop": {"position": "centre", "size": list(self.size)},
            "range": [0.0, 1.0],
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> Preprocessing:
        """What `describe` described, from a manifest that its schema accepts."""
        size, resize = described["crop"]["size"], described["resize"]["box"]
        mean, std = described["mean"], described["std"]
        in_graph = described["dtype"] == "uint8"
        return cls(
            tuple(size),
            tuple(resize),
            tuple(mean),
            tuple(std),
            in_graph,
            longest_aspect=described["resize"]["longest_aspect"],
            interpolation=described["resize"]["filter"].removeprefix(_PILLOW),
            image_range=tuple(described["image_range"]) if "image_range" in described else None,
        )


def _three_numbers(text: str) -> tuple[float, float, float]:
    red, green, blue = values = tuple(float(value) for value in strict_json.parse(text))
    # Files and other languages have them in single precision.
    with np.errstate(over="ignore"):
        if not np.isfinite(np.array(values, np.float32)).all():
            raise ValueError(f"{values} is not finite")
    return red, green, blue


def _two_numbers(text: str | None) -> ImageRange | None:
    if text is None:
        return None
    low, high = (float(value) for value in strict_json.parse(text))
    check_range((low, high))
    return low, high


def _without_far_ends(image: Image, longest_aspect: int) -> Image:
    """The middle of a strip: resized whole, a 1 x 65,000 image would take gigabytes."""
    longest = longest_aspect * min(image.size)
    if max(image.size) <= longest:
        return image
    width, height = min(image.width, longest), min(image.height, longest)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _pillows(interpolation: str) -> Any:
    from PIL.Image import Resampling

    return Resampling[interpolation.upper()]


def to_rgb(image: Image) -> Image:
    """Upright 8-bit RGB from any mode: orientation applied, 16 bit scaled, alpha dropped.

    The orientation is that of `orientation.orientation_of`, upright where it cannot be read.
    Values of 16 bits are taken as 0 to 65,535; `decoding.read_image` knows a file's own scale.
    """
    from cmt.calib_data.depth import SIXTEEN_BIT, grey_of

    image.load()
    image = turned(image, orientation_of(image)[0])
    if image.mode in SIXTEEN_BIT:
        # Pillow's own conversion clips everything above 255 to white.
        image = grey_of(np.asarray(image))
    if image.mode == "La":  # the one mode without a direct way
        image = image.convert("LA")
    rgb = image.convert("RGB")
    for name in ORIENTATION_KEYS:  # or it would be turned again
        rgb.info.pop(name, None)
    return rgb
