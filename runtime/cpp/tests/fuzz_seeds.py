"""Writes what the fuzzers start from: fuzz_seeds.py BUNDLE FOLDER."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin


def main(bundle: str, folder: str) -> None:
    """A manifest, and a small image of every kind that the decoders tell apart."""
    manifests, images = Path(folder) / "manifests", Path(folder) / "images"
    for path in (manifests, images):
        path.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(bundle) / "manifest.json", manifests)
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
