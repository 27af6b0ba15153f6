"""The torch network as a stage, and what saved files answer on the images of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt.export.context import Context
from cmt.export.graphs import SUFFIX
from cmt.export.images import VALIDATION
from cmt.export.stages import MARKER
from cmt.files import sha256_file
from cmt.measure.shards import AskedFile, Outputs, load_asked, outputs_of
from cmt.targets.reference import TORCH
from cmt.targets.registry import at_once
from cmt.targets.settings import Settings
from cmt.weight_files import save_torch

PARITY_IMAGES = 32
"""On which a graph or file is compared with torch; all that feature maps are kept of."""
REFERENCE_BATCH = 16
"""Torch takes any batch, so its answers come faster than one by one."""
REFERENCE = "reference"
"""The stage of the torch network."""

Places = NDArray[np.int64]
"""Of images in their set."""


def reference_network(context: Context) -> Path:
    """The torch network as files, which every process can load."""
    model = context.inputs.model

    def make(folder: Path) -> None:
        save_torch(model.state_dict(), folder / "weights.pt")
        config = {
            "variant": model.variant.name,
            "family": model.family.name,
            "img_size": model.img_size,
            "num_classes": model.num_classes,
            "features": model.head is None,
        }
        (folder / "network.json").write_text(json.dumps(config))

    inputs = {
        "weights": context.inputs.weights_sha256 or "random",
        "weights_key": context.options.weights_key,
        "variant": model.variant.name,
        "size": model.img_size,
        "output": context.options.output,
    }
    return context.stages.run(REFERENCE, inputs, make) / "network.json"


@dataclass(frozen=True)
class Asked:
    """A file, and the stage that it is from."""

    file: AskedFile
    stage: str


def asked_reference(context: Context, network: Path) -> Asked:
    """The torch network as it is asked."""
    file = asked_file(context, TORCH, TORCH, network, None, REFERENCE_BATCH)
    return Asked(file, REFERENCE)


def asked_file(
    context: Context,
    name: str,
    runtime: str,
    path: Path,
    settings: Settings | None,
    batch: int,
) -> AskedFile:
    """A file as it is asked, in as many batches at a time as are fastest; `hashed` completes it.

    Args:
        name: tells it from the others of a run.
        runtime: one of `targets.registry.LOADERS`.
    """
    way = at_once(runtime, settings, context.threads)
    in_graph = runtime != TORCH and context.inputs.preprocessing.in_graph
    return {
        "name": name,
        "runtime": runtime,
        "path": str(path),
        "sha256": {},
        "settings": way.settings,
        "threads": way.threads,
        "batch": batch,
        "callers": way.callers,
        "in_graph": in_graph,
    }


def hashed(file: AskedFile) -> AskedFile:
    """A file with the hashes by which another machine knows it."""
    beside = sorted(Path(file["path"]).parent.iterdir())
    hashes = {path.name: sha256_file(path) for path in beside if path.name != MARKER}
    return {**file, "sha256": hashes}


def answers(context: Context, asked: Asked, places: Places, on: str) -> Outputs:
    """All outputs of a saved file on some of a set of images that are few, computed once."""
    images, file = context.images.sets[on], asked.file

    def make(folder: Path) -> None:
        title = f"running {file['name'].split(SUFFIX)[0]} on {len(places)} {on} images"
        with context.progress.task(title, len(places)) as advance:
            fed = replace(images.preprocessing, in_graph=file["in_graph"])
            runner, pixels = load_asked(file), images.pixels[places]
            arrays = outputs_of(runner, fed, pixels, file["batch"], file["callers"], advance)
        np.savez(folder / "outputs.npz", *arrays)

    inputs = {**way_of(asked.file), "device": context.options.device, "places": places.tolist()}
    stage = f"{file['name']}.{'outputs' if on == VALIDATION else on}"
    folder = context.stages.run(stage, inputs, make, [asked.stage, f"images/{on}"])
    with np.load(folder / "outputs.npz") as arrays:
        return [arrays[f"arr_{i}"] for i in range(len(arrays.files))]


def way_of(file: AskedFile) -> dict[str, Any]:
    """All of how a file is asked that its answers hang on, but for its own bytes."""
    left_out = ("name", "path", "sha256")
    return {name: value for name, value in file.items() if name not in left_out}
