"""A set of images that may be too many to keep: looked at in shards, each of them a stage.

What is known of every image is kept, their pixels only where those of the whole set are few.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from cmt.calib_data.prepared import (
    Chained,
    Pixels,
    PreparedImages,
    listing,
    open_prepared,
    save_pixels,
)
from cmt.calib_data.readers import read_lists
from cmt.calib_data.reading import ImageList, PixelsOnDemand, ReadImages, part
from cmt.calib_data.sources import choose
from cmt.export.images import VALIDATION, Images, Selection
from cmt.export.stages import Stages
from cmt.measure.progress import ProgressBars
from cmt.measure.shards import shard_size

MOST_KEPT = 2**29
"""Bytes of pixels that are kept, those of 3,500 images at 224 pixels: files that the gate tries are
asked without another look at the images."""


def prepare_all(
    selections: Mapping[str, Selection], stages: Stages, progress: ProgressBars, processes: int
) -> Images:
    """Prepare every set; validation's, which may be large, in shards.

    Args:
        processes: that read images.
    """
    validation = in_shards(VALIDATION, selections[VALIDATION], stages, progress, processes)
    others = {name: chosen for name, chosen in selections.items() if name != VALIDATION}
    sets = {name: chosen.prepare(name, stages, progress) for name, chosen in others.items()}
    return Images({VALIDATION: validation, **sets})


def in_shards(
    name: str, selection: Selection, stages: Stages, progress: ProgressBars, processes: int
) -> PreparedImages:
    """The readable images of a selection, by the stage `images/<name>` and one for each shard.

    Raises:
        InputError: no image can be decoded.
        MachineError: an image has changed since the start.
    """
    images, count = selection.listed, len(selection.key["images"])
    height, width = selection.preprocessing.size
    kept = count * height * width * 3 <= MOST_KEPT
    shards = _divided(images, shard_size(height * width * 3, batch=1))
    names = [f"images/{name}-{i:04d}" for i in range(len(shards))]
    inputs = [{"images": shard, "pixels": kept} for shard in shards]
    has = map(stages.has, names, inputs)
    missing = [shard for shard, there in zip(shards, has, strict=True) if not there]
    folders = []
    with (
        progress.task(f"preparing {name} images", count) as advance,
        closing(read_lists(missing, processes)) as found,
    ):
        for stage, made_of, shard in zip(names, inputs, shards, strict=True):
            folders.append(stages.run(stage, made_of, lambda to: _write(next(found)[1], kept, to)))
            advance(len(shard["keys"]))

    def make(folder: Path) -> None:
        merged = _merged(selection, [len(shard["keys"]) for shard in shards], folders)
        (folder / "images.json").write_text(json.dumps(merged))

    folder = stages.run(f"images/{name}", selection.key, make, names)
    pixels_of = (lambda _: _kept_pixels(folders)) if kept else PixelsOnDemand
    return open_prepared(folder, selection.preprocessing, pixels_of, images["origin"])


def _divided(images: ImageList, size: int) -> list[ImageList]:
    count = len(images["keys"])
    return [part(images, range(b, min(b + size, count))) for b in range(0, count, size)]


def _write(found: ReadImages, kept: bool, folder: Path) -> None:
    content = {
        "read": found["read"].tolist(),
        "skipped": found["skipped"],
        "unturned": found["unturned"],
        "outside": found["outside"],
    }
    (folder / "images.json").write_text(json.dumps(content))
    if kept:
        save_pixels(folder / "pixels.npy", found["pixels"])


def _kept_pixels(folders: Sequence[Path]) -> Pixels:
    return Chained([np.load(folder / "pixels.npy", mmap_mode="r") for folder in folders])


def _merged(
    selection: Selection, lengths: Sequence[int], folders: Sequence[Path]
) -> dict[str, Any]:
    """What `prepared.listing` says of all images, from what was found of each shard."""
    source, images = selection.source, selection.key["images"]
    read: list[int] = []
    skipped: list[str] = []
    unturned: list[str] = []
    outside: dict[str, int] = {}
    begin = 0
    for length, folder in zip(lengths, folders, strict=True):
        found = json.loads((folder / "images.json").read_text())
        read += [begin + place for place in found["read"]]
        skipped += found["skipped"]
        unturned += [images[begin + place][0] for place in found["unturned"]]
        outside |= {images[begin + place][0]: count for place, count in found["outside"]}
        begin += length
    chosen = choose(source, selection.count, selection.seed)
    digests = [images[place][1] for place in read]
    return listing(
        source,
        chosen,
        selection.label_map,
        chosen[read].tolist(),
        digests,
        skipped,
        unturned,
        outside,
    )
