"""Golden answers in float32 added to a bundle whose files have them in BF16 alone.

    python -m float32_answers BUNDLE

An export writes both; the stored bundle of schema 1 is of an earlier one, on a CPU with BF16. What
is added is computed here, by the same file with float32 asked for.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from cmt.bundle.golden import golden_images, run_artefact
from cmt.bundle.reader import open_bundle
from cmt.bundle.writer import describe_file, write_manifest
from cmt.targets.settings import PRECISION


def add_float32_answers(folder: Path) -> None:
    """To each file that is to run in BF16; manifest and seal are written anew."""
    bundle = open_bundle(folder)
    images = bundle.preprocessing.feed(golden_images(bundle))
    for artefact in bundle.artefacts:
        if artefact["settings"].get(PRECISION) != "bf16":
            continue
        plain = {**artefact, "settings": {**artefact["settings"], PRECISION: "f32"}}
        answers = run_artefact(bundle, plain, images, threads=1)
        entries = artefact["golden"]["outputs_f32"] = []
        for entry, array in zip(artefact["golden"]["outputs"], answers, strict=True):
            path = (folder / entry["path"]).with_suffix(".f32.npy")
            np.save(path, array)
            entries.append(describe_file(folder, path))
            stored = np.load(folder / entry["path"])
            apart = np.abs(stored - array).max() / np.abs(stored).max()
            print(f"{entry['path']}: BF16 and float32 differ by {apart:.2g}")
    write_manifest(folder, bundle.manifest)


if __name__ == "__main__":
    add_float32_answers(Path(sys.argv[1]))
