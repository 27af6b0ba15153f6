"""What INT8 finds hard: a network with channels far above the others, images that will not do.

    python benchmarks/hard_cases.py network --variant ti --weights W --out hostile.safetensors
    python benchmarks/hard_cases.py images --photos imagenette/train --kind grey --out grey

`cmt-export` on them shows the gate and its warnings at work (docs/accuracy.md).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, zip_longest
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from cmt.checkpoints import load_model, to_public_layout
from cmt.network import CMT
from cmt.variants import VARIANTS

Pixels = NDArray[np.uint8]


SCALED = (
    ("stages.0.blocks.{}.norm2", "stages.0.blocks.{}.ffn.expand"),
    ("stages.0.blocks.{}.ffn.depthwise_norm", "stages.0.blocks.{}.ffn.project"),
    ("stages.3.blocks.{}.attention.v", "stages.3.blocks.{}.attention.proj"),
)
"""Layers of which a channel is scaled up, and the only ones that read it."""


@torch.no_grad()
def make_hostile(model: CMT, factor: float, block: int) -> None:
    """Scale a channel of each layer of `SCALED` up and its reader down, in place: same function.

    It is the channel whose reader's weights are largest: what rounding takes from the others then
    counts most.

    Args:
        block: which of these stages' blocks, from 0.
    """
    for names in SCALED:
        given, reader = (model.get_submodule(name.format(block)) for name in names)
        read = reader.get_parameter("weight")
        channel = int(read.flatten(1).square().sum(0).argmax())
        for own in given.parameters():  # weight and bias
            own[channel] *= factor
        read[:, channel] /= factor


def _grey(pixels: Pixels) -> Pixels:
    return np.broadcast_to(pixels.mean(2, keepdims=True).astype(np.uint8), pixels.shape)


def _even(pixels: Pixels) -> Pixels:
    return np.full_like(pixels, int(pixels.mean()))


def _shifted(pixels: Pixels) -> Pixels:
    mean = 255 * np.array([0.485, 0.456, 0.406])  # ImageNet's, which preprocessing subtracts too
    return np.clip(pixels - mean, 0, 255).astype(np.uint8)


KINDS: dict[str, Callable[[Pixels], Pixels]] = {
    "as-they-are": lambda pixels: pixels,
    "grey": _grey,
    "wrong-mean": _shifted,
    "even-grey": _even,
}


@click.group(context_settings={"show_default": True})
def main() -> None:
    """Write what INT8 finds hard."""


@main.command()
@click.option("--variant", default="ti", type=click.Choice(list(VARIANTS)))
@click.option("--weights", required=True, help="Checkpoint file.")
@click.option("--factor", default=100.0, help="How far the channels are scaled up.")
@click.option("--block", default=0, help="Of stages 1 and 4, from 0.")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False))
def network(variant: str, weights: str, factor: float, block: int, out: Path) -> None:
    """The same network with some channels far above the others."""
    model = load_model(variant, weights)
    images = torch.randn(4, 3, *model.img_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = model(images)
        make_hostile(model, factor, block)
        change = (model(images) - before).abs().max() / before.abs().max()
    state = {name: value.contiguous() for name, value in to_public_layout(model).items()}
    save_file(state, out, model.metadata)
    click.echo(f"{out}: the logits of noise changed by {change:.0e} of the largest")


@main.command()
@click.option("--photos", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--kind", required=True, type=click.Choice(list(KINDS)))
@click.option("--count", default=130, help="How many, of all classes alike.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False))
def images(photos: Path, kind: str, count: int, out: Path) -> None:
    """Photos (class/name.jpg) made unfit for calibration."""
    classes = [sorted(folder.glob("*.*")) for folder in sorted(photos.iterdir()) if folder.is_dir()]
    in_turn = [path for path in chain(*zip_longest(*classes)) if path is not None]
    for path in in_turn[:count]:
        folder = out / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(Image.open(path).convert("RGB"))
        Image.fromarray(KINDS[kind](pixels)).save(folder / f"{path.stem}.png")


if __name__ == "__main__":
    main()
