"""An image file as Pillow's picture: its kind told by content, its size and scale checked first.

JPEG and PNG go by `jpeg_segments` and `png_chunks`, so that the C++ runtime reads and refuses the
same files; the others are Pillow's alone.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cmt.calib_data import jpeg_segments, png_chunks
from cmt.calib_data.image_range import ImageRange
from cmt.calib_data.limits import MOST_BYTES, UnreadableImageError, check_size

if TYPE_CHECKING:
    from PIL.Image import Image

HEAD = 16
"""Bytes that tell a file's kind."""
_MAGIC = {
    jpeg_segments.START + b"\xff": "JPEG",
    png_chunks.SIGNATURE: "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
    **{f"P{kind}{space}".encode(): "PPM" for kind in "123456f" for space in " \n\r\t"},
}
_PIXELS_PER_BYTE = {"GIF": 4096, "PPM": 8}
"""At most; of TIFF, WebP and AVIF a few bytes may fill a page."""
_NEW_SUBFILE_TYPE, _COMPRESSION, _DNG_VERSION = 254, 259, 50706
_UNCOMPRESSED = 1


def kind_of(head: bytes) -> str | None:
    """Pillow's name for the kind of an image file with these first bytes, or None.

    Nothing else is handed to Pillow: of its own choice it gives PostScript to Ghostscript to run.
    """
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return "AVIF" if head[8:12] in (b"avif", b"avis") else None
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def read_image(path: Path, image_range: ImageRange | None = None) -> Image:
    """The (first) picture of a file, decoded, in 8 bits for each value.

    What the file says of its orientation is in `info`, for `orientation.orientation_of`, as is
    `image_range.OUTSIDE` where the file states no scale and was read by `image_range`.

    Raises:
        UnreadableImageError: no image, a damaged one, or one whose scale nobody knows.
        OSError: the file cannot be read; decoders of damaged files raise what they like.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImageError("it is no file")
        kind = kind_of(file.read(HEAD))
        file.seek(0)
        if kind in ("JPEG", "PNG"):
            if status.st_size > MOST_BYTES:
                raise UnreadableImageError(f"it has {status.st_size:,} bytes: make it smaller")
            return decode(file.read(), image_range)
        if kind is None:
            raise UnreadableImageError("it is no image of a kind that is read: convert it")
        return _by_pillow(file, kind, status.st_size, image_range)


def _open_at_once(path: str, flags: int) -> int:
    """A file's descriptor; opening a pipe would wait for its writer otherwise."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def decode(content: bytes, image_range: ImageRange | None = None) -> Image:
    """`read_image` of a JPEG or PNG file's bytes."""
    if content.startswith(png_chunks.SIGNATURE):
        png = png_chunks.read_png(content)
        image = _opened(io.BytesIO(png.pixels), "PNG")
        found = png.exif, png.xmp
        if png.deep:
            from cmt.calib_data.depth import from_png

            image = from_png(image, png.significant_bits, image_range)
    elif content.startswith(jpeg_segments.START + b"\xff"):
        jpeg = jpeg_segments.read_jpeg(content)
        image = _opened(io.BytesIO(jpeg.pixels), "JPEG")
        found = jpeg.exif, jpeg.xmp
    else:
        raise UnreadableImageError("it is no JPEG or PNG file: convert it")
    image.info |= {name: data for name, data in zip(("exif", "xmp"), found, strict=True) if data}
    return image


def _opened(file: IO[bytes], kind: str) -> Image:
    from PIL import Image

    # Above its limit Pillow refuses an image; half-way there it would only talk.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(file, formats=[kind]) as image:
            image.load()
            return image


def _by_pillow(file: IO[bytes], kind: str, size: int, image_range: ImageRange | None) -> Image:
    from PIL import Image

    if kind not in Image.OPEN:
        Image.init()
    if kind not in Image.OPEN:
        raise UnreadableImageError(f"this machine's Pillow reads no {kind}: convert it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(file, formats=[kind]) as image:
            check_size(image.width, image.height, _most_pixels(image, kind, size))
            tiles = list(image.tile)
            image.load()
    return _in_eight_bits(image, kind, tiles, image_range)


def _most_pixels(image: Image, kind: str, size: int) -> int:
    """How many pixels a file of `size` bytes can hold; raises for a raw photo's preview."""
    if kind == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        if tags.get(_NEW_SUBFILE_TYPE, 0) & 1 or _DNG_VERSION in tags:
            raise UnreadableImageError("its first picture is a preview: convert it")
        if tags.get(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED:
            return 8 * size
    if kind == "BMP" and image.info.get("compression") in (0, 3):
        return 8 * size
    return _PIXELS_PER_BYTE.get(kind, image.width * image.height) * size


def _in_eight_bits(
    image: Image, kind: str, tiles: list[Any], image_range: ImageRange | None
) -> Image:
    from cmt.calib_data import depth

    if kind == "TIFF":
        deep = depth.from_tiff(image, image_range)
    elif kind == "PPM":
        args = tiles[0][3]
        maxval = args[1] if isinstance(args, tuple) else None
        deep = depth.from_pnm(image, maxval, image_range)
    else:
        return image
    if deep is not image:
        deep.info |= {k: v for k, v in image.info.items() if k in ("exif", "xmp")}
    return deep
