"""What INT8 finds hard: a network with channels far above the others, images that will not do.

    python benchmarks/hard_cases.py network --weights W --out hostile.safetensors
    python benchmarks/hard_cases.py images --photos imagenette/train --kind grey --out grey

`cmt-export` on them shows the gate and its warnings at work (docs/notebook/accuracy.md).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from cmt.calib_data.preprocessing import IMAGENET_MEAN, to_rgb
from cmt.calib_data.sources import FolderImages, choose
from cmt.checkpoints import load_model
from cmt.errors import InputError
from cmt.layouts import to_public_layout
from cmt.network import CMT, ConvHead
from cmt.variants import VARIANTS

SCALED = (
    (0, "norm2", "ffn.expand"),
    (0, "ffn.depthwise_norm", "ffn.project"),
    (3, "attention.v", "attention.proj"),
)
"""Layers of a block of which a channel is scaled up, the only ones that read it (official family),
and the stage where that is done unless it is done everywhere."""
_SAME = 1e-5
"""How far the logits may change, relative to the largest: float32 rounding."""

_NEARLY = 0.2
"""The same with --stage-ends."""

Pixels = NDArray[np.uint8]


def layers_to_scale(model: CMT, block: int | None) -> list[tuple[str, str]]:
    """Names of the layers to scale up and of their readers: in one block, or in all of them."""
    return [
        (f"stages.{stage}.blocks.{number}.{writer}", f"stages.{stage}.blocks.{number}.{reader}")
        for stage, depth in enumerate(model.variant.depths)
        for number in (range(depth) if block is None else [block])
        for usual, writer, reader in SCALED
        if block is None or stage == usual
    ]


@torch.no_grad()
def make_hostile(model: CMT, factor: float, block: int | None) -> None:
    """Scale a channel of each of these layers up and its reader down, in place: same function.

    It is the channel whose reader's weights are largest: what rounding takes from the others then
    counts most.

    Args:
        block: which block of the stages of `SCALED`, from 0; None scales in every block of every
            stage.
    """
    for names in layers_to_scale(model, block):
        writer, reader = map(model.get_submodule, names)
        read = reader.get_parameter("weight")
        channel = int(read.flatten(1).square().sum(0).argmax())
        for own in writer.parameters():  # weight and bias
            own[channel] *= factor
        read[:, channel] /= factor


@torch.no_grad()
def scale_stage_ends(model: CMT, factor: float) -> None:
    """Scale up a channel of what the last IRFFN of each stage adds, and its reader down, in place.

    Nothing can take that out again, for residual sums and LayerNorms are in between. The function
    changes a little: of what is added to, a `factor`-th is left in that channel, the one whose
    reader's weights are smallest.
    """
    assert isinstance(model.head, ConvHead)
    stages: Any = model.stages
    readers = [*(stage.entry.conv for stage in stages[1:]), model.head.features]
    for stage, reader in zip(stages, readers, strict=True):
        channel = int(reader.weight.transpose(0, 1).flatten(1).square().sum(1).argmin())
        for own in stage.blocks[-1].ffn.project_norm.parameters():
            own[channel] *= factor
        reader.weight[:, channel] /= factor


def _grey(pixels: Pixels) -> Pixels:
    return np.broadcast_to(pixels.mean(2, keepdims=True).astype(np.uint8), pixels.shape)


def _even(pixels: Pixels) -> Pixels:
    return np.full_like(pixels, int(pixels.mean()))


def _shifted(pixels: Pixels) -> Pixels:
    # Preprocessing subtracts it again.
    return np.clip(pixels - 255 * np.array(IMAGENET_MEAN), 0, 255).astype(np.uint8)


KINDS: dict[str, Callable[[Pixels], Pixels]] = {
    "as-they-are": lambda pixels: pixels,
    "grey": _grey,
    "wrong-mean": _shifted,
    "even-grey": _even,
}


@click.group(context_settings={"show_default": True})
def commands() -> None:
    """Write what INT8 finds hard."""


@commands.command()
@click.option("--variant", default="ti", type=click.Choice(list(VARIANTS)))
@click.option("--weights", required=True, help="Checkpoint file of the official family.")
@click.option("--factor", default=100.0, help="How far the channels are scaled up.")
@click.option("--block", default=0, type=click.IntRange(min=0), help="Of stages 1 and 4.")
@click.option("--everywhere", is_flag=True, help="In all blocks of all stages instead.")
@click.option("--stage-ends", is_flag=True, help="In what each stage ends with instead.")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False))
def network(
    variant: str,
    weights: str,
    factor: float,
    block: int,
    everywhere: bool,
    stage_ends: bool,
    out: Path,
) -> None:
    """The same network (nearly, with --stage-ends) with some channels far above the others."""
    depths = VARIANTS[variant].depths
    if block >= min(depths[0], depths[3]):
        raise InputError(f"stages 1 and 4 of CMT-{variant} have no block {block}: give a lower one")
    model = load_model(variant, weights, family="official")
    images = torch.randn(4, 3, *model.img_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = model(images)
        if stage_ends:
            scale_stage_ends(model, factor)
        else:
            make_hostile(model, factor, None if everywhere else block)
        change = float((model(images) - before).abs().max() / before.abs().max())
    if not change < (_NEARLY if stage_ends else _SAME):
        raise InputError(f"--factor {factor:g} changes the logits by {change:.0e}: give another")
    state = {name: value.contiguous() for name, value in to_public_layout(model).items()}
    save_file(state, out, model.metadata)
    click.echo(f"{out}: the logits of noise changed by {change:.0e} of the largest")


@commands.command()
@click.option("--photos", required=True, type=click.Path(path_type=Path))
@click.option("--kind", required=True, type=click.Choice(list(KINDS)))
@click.option("--count", default=130, help="How many, of all classes alike.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False))
def images(photos: Path, kind: str, count: int, out: Path) -> None:
    """Photos (class/name.jpg) made unfit for calibration."""
    source = FolderImages(photos)
    if out.exists():
        raise InputError(f"{out} exists: give a new folder")
    for index in choose(source, count, seed=0):
        pixels = KINDS[kind](np.asarray(to_rgb(source.load(index))))
        path = out / f"{source.key(index)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def main() -> None:
    """Bad input is one line and exit status 2."""
    try:
        commands()
    except InputError as error:
        click.echo(f"hard_cases.py: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
