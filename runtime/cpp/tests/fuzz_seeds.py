"""Writes what the fuzzer of images starts from: fuzz_seeds.py FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin


def main(folder: str) -> None:
    """A small image of every kind that the decoders tell apart."""
    images = Path(folder) / "fuzz_image"
    images.mkdir(parents=True, exist_ok=True)
    picture = Image.effect_noise((24, 18), 80).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", 'tiff:Orientation="3"')
    text.add_text("Raw profile type exif", f"\nexif\n{14:8}\n{exif.tobytes().hex()}\n", zip=True)
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "exif.jpg": ("RGB", {"exif": exif}),
        "xmp.jpg": ("RGB", {"xmp": b'tiff:Orientation="8"', "progressive": True}),
        "grey.jpg": ("L", {}),
        "cmyk.jpg": ("CMYK", {"subsampling": 0}),
        "exif.png": ("RGB", {"exif": exif}),
        "text.png": ("RGBA", {"pnginfo": text}),
        "grey.png": ("I;16", {}),
        "bits.png": ("1", {}),
        "palette.png": ("P", {"transparency": b"\0\7\xff"}),
    }
    for name, (mode, options) in kinds.items():
        source = picture.convert("L") if mode == "I;16" else picture
        source.convert(mode).save(images / name, **options)


if __name__ == "__main__":
    main(*sys.argv[1:])
