"""The torch network as a stage, and what saved files answer on the images of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cmt.export.context import Context
from cmt.export.graphs import SUFFIX
from cmt.export.images import VALIDATION
from cmt.targets.base import run_all
from cmt.targets.reference import TORCH
from cmt.targets.registry import LOADERS
from cmt.targets.settings import Settings
from cmt.weight_files import save_torch

PARITY_IMAGES = 32
"""On which a graph or file is compared with torch; all that feature maps are kept of."""
REFERENCE_BATCH = 16
"""Torch takes any batch, so its answers come faster than one by one."""
REFERENCE = "reference"
"""The stage of the torch network."""

Outputs = list[np.ndarray]
"""One array (images, ...) for each output of the network."""


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


def reference_answers(context: Context, network: Path, on: str = VALIDATION) -> Outputs:
    """What the torch network answers on one set of images."""
    return answers(context, TORCH, TORCH, network, REFERENCE, on=on)


def answers(
    context: Context,
    name: str,
    runtime: str,
    path: Path,
    after: str,
    settings: Settings | None = None,
    on: str = VALIDATION,
) -> Outputs:
    """All outputs of a saved file on one set of images, computed once.

    Args:
        name: of the stage.
        runtime: one of `targets.registry.LOADERS`.
        after: the stage that the file is from.
    """
    prepared, options = context.images.sets[on], context.options
    total = len(prepared)
    if options.output == "features":
        total = min(total, PARITY_IMAGES)
    is_reference = runtime == TORCH
    batch = REFERENCE_BATCH if is_reference else options.batch
    images = prepared if is_reference else context.as_fed(prepared)

    def make(folder: Path) -> None:
        runner = LOADERS[runtime](path, context.threads, settings, batch)
        title = f"running {name.split(SUFFIX)[0]} on {total} {on} images"
        with context.progress.task(title, total) as advance:
            arrays = run_all(runner, images.batches(batch, np.arange(total)), total, advance)
        np.savez(folder / "outputs.npz", *arrays)

    inputs = {"runtime": runtime, "batch": batch, "threads": context.threads}
    inputs |= {"device": options.device}
    stage = f"{name}.outputs" if on == VALIDATION else f"{name}.{on}"
    folder = context.stages.run(stage, inputs, make, [after, f"images/{on}"])
    with np.load(folder / "outputs.npz") as file:
        return [file[f"arr_{i}"] for i in range(len(file.files))]
