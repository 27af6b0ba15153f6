"""Writes what the fuzzer of images starts from: fuzz_seeds.py FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def main(folder: str) -> None:
    """A small image of every kind that the decoders tell apart."""
    sys.path.insert(0, str(ROOT / "tests" / "fuzz"))
    from image_mutations import seeds

    images = Path(folder) / "fuzz_image"
    images.mkdir(parents=True, exist_ok=True)
    for name, content in seeds().items():
        (images / name).write_bytes(content)


if __name__ == "__main__":
    main(*sys.argv[1:])
