"""`cmt-train`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cmt.commands.console import LOG, say, takes_common
from cmt.commands.parameters import RANGE
from cmt.errors import InputError
from cmt.variants import VARIANTS

if TYPE_CHECKING:
    from cmt.calib_data.sources import ImageSource
    from cmt.training.display import Display, Write
    from cmt.training.run import Run
    from cmt.training.validation import Accuracy


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Training images.")
@click.option("--val", type=click.Path(path_type=Path), required=True, help="Validation images.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--variant", type=click.Choice(list(VARIANTS)), default="ti", show_default=True)
@click.option("--init", type=click.Path(path_type=Path), help="Weights to start from.")
@click.option("--weights-key", metavar="NAME", help="Which of several weights in that file.")
@click.option(
    "--schedule", default="160:100000:32", show_default=True, help="size:images:batch,... in order."
)
@click.option("--learning-rate", default=3e-4, show_default=True, help="Peak, per batch of 64.")
@click.option(
    "--resize-ratio",
    type=click.FloatRange(min=1),
    default=256 / 224,
    help="Evaluation: shorter side / input.",
)
@click.option(
    "--min-crop",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.6,
    show_default=True,
    help="Smallest share of an image that a random crop keeps.",
)
@click.option(
    "--image-range",
    type=RANGE,
    metavar="LOW,HIGH",
    help="What is black and white in images that do not say it: 16 bits, 32 bits, float.",
)
@click.option("--freeze", type=click.IntRange(0, 4), default=0, help="Stem and stages kept fixed.")
@click.option("--bf16", is_flag=True, help="Products in bfloat16.")
@click.option("--seed", default=0, show_default=True)
@takes_common(json="Print the result alone, as an object.")
def train_cli(
    data: Path,
    val: Path,
    out: Path,
    variant: str,
    init: Path | None,
    weights_key: str | None,
    schedule: str,
    learning_rate: float,
    resize_ratio: float,
    min_crop: float,
    image_range: tuple[float, float] | None,
    freeze: int,
    bf16: bool,
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train a CMT on a folder of images; stop and go on as you like.

    Folders hold class/name.jpg, or Fashion-MNIST's four IDX files. The input size grows along the
    schedule. A run that was stopped goes on with the same command; one that ended goes on where
    the schedule was made longer, at the longer one's learning rate.
    """
    from cmt.training.batches import open_source
    from cmt.training.display import Display
    from cmt.training.run import Run
    from cmt.training.schedule import Recipe, parse_schedule
    from cmt.training.validation import Validation

    recipe = Recipe(
        variant,
        parse_schedule(schedule),
        learning_rate,
        resize_ratio,
        min_crop=min_crop,
        freeze=freeze,
        bf16=bf16,
        seed=seed,
    )
    source = open_source(data, "train", image_range)
    validation = open_source(val, "t10k", image_range)
    if source.class_names != validation.class_names:
        raise InputError(f"{data} and {val} do not have the same classes")
    out.mkdir(parents=True, exist_ok=True)
    with Display(_lines_to(quiet, as_json), LOG.lines) as display:
        run = Run(recipe, source, out, init, weights_key)
        _warn([f"{init}: {note}" for note in run.notes])
        if run.position is not None:
            display.say(f"goes on {run.position}")
        try:
            run.train(display, Validation(validation, resize_ratio))
        finally:
            _warn(run.warnings())
        path = out / f"cmt_{variant}.safetensors"
        accuracy, result = _measure(run, validation, path, display)
    _warn(accuracy.remarks)
    _tell(accuracy, result, path, quiet, as_json)


def _tell(accuracy: Accuracy, result: str, path: Path, quiet: bool, as_json: bool) -> None:
    found = {"top1": accuracy.top1, "images": accuracy.images, "weights": str(path)}
    if as_json:
        click.echo(json.dumps(found))
    elif not quiet:
        say(f"top-1 {result}; weights in {path}", as_is=True)


def _measure(
    run: Run, validation: ImageSource, path: Path, display: Display
) -> tuple[Accuracy, str]:
    """Write the weights with their accuracy: as they are shipped, in half precision."""
    from cmt.calib_data.preprocessing import Preprocessing
    from cmt.checkpoints import load_model
    from cmt.training.run import write_weights
    from cmt.training.validation import evaluate

    unmeasured = path.with_stem("unmeasured")
    write_weights(run, "not measured", unmeasured)
    model = load_model(run.recipe.variant, unmeasured).to(run.device)
    preprocessing = Preprocessing.for_model(model.img_size, model.metadata, model.family)
    display.task("validating", 2 * len(validation))
    accuracy = evaluate(model, validation, preprocessing, advance=display.advance)
    unmeasured.unlink()
    result = f"{accuracy.top1:.2f} % on {accuracy.images} images of {validation.description}"
    write_weights(run, result, path)
    return accuracy, result


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        say(f"warning: {line}", err=True)


def _lines_to(quiet: bool, as_json: bool) -> Write | None:
    """What writes lines of progress; None for standard output, or a bar on a terminal."""
    if quiet:
        return lambda _: None
    return partial(click.echo, err=True) if as_json else None
