"""`cmt-classify`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cmt.commands.console import say, takes_common
from cmt.commands.parameters import COUNT, FOLDER
from cmt.commands.trust import open_trusted, takes_trust
from cmt.errors import InputError
from cmt.files import cache_folder
from cmt.printing import printable

if TYPE_CHECKING:
    from cmt.bundle.classifier import Classifier, Prediction


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.argument("bundle", type=FOLDER)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--file",
    metavar="NAME",
    help="Which file of the bundle runs: int8, or openvino/int8.  "
    "[default: the smallest precision that runs here]",
)
@click.option("--top", default=5, type=click.IntRange(1, 1_000_000), help="Classes per image.")
@click.option("--threads", type=COUNT, help="CPU threads.  [default: as tuned, else all usable]")
@takes_trust
@takes_common(json="One JSON object per line and image.")
def classify_cli(
    *,
    bundle: Path,
    images: tuple[Path, ...],
    file: str | None,
    top: int,
    threads: int | None,
    trust: Path | None,
    runs: tuple[str, ...],
    quiet: bool,
    as_json: bool,
) -> int:
    """Print the most probable classes of image files, of all kinds that Pillow reads.

    IMAGE may be a folder: all images below it then, and what is left out of it is said.
    """
    from cmt.bundle.classifier import Classifier

    opened, cache = open_trusted(bundle, trust, runs), cache_folder() / "compiled"
    classifier = Classifier(opened, file, threads=threads, cache=cache)
    if not quiet:
        say(f"running {classifier.artefact}", err=True)
    show = _print_json if as_json else _print_nothing if quiet else _print_text
    for path in images:
        for one, found in _classified(classifier, path, top):
            show(one, found)
    return 0


def _classified(
    classifier: Classifier, path: Path, top: int
) -> Iterator[tuple[Path, list[Prediction]]]:
    """The image, or each below the folder that can be read, with its classes."""
    if not path.is_dir():
        yield path, _classify(classifier, path, top)
        return
    from cmt.calib_data.listing import images_below

    listing = images_below(path, path)
    for remark in listing.remarks(path):
        say(f"warning: {remark}", err=True)
    read = 0
    for one in listing.images:
        try:
            found = _classify(classifier, one, top)
        except InputError as error:
            say(f"warning: left out: {error}", err=True)
        else:
            read += 1
            yield one, found
    if read == 0:
        raise InputError(f"{path}: none of its {len(listing.images)} images can be read")
    if read < len(listing.images):
        count = len(listing.images)
        say(f"warning: {path}: {count - read} of {count} images were left out", err=True)


def _classify(classifier: Classifier, path: Path, top: int) -> list[Prediction]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = classifier.classify(path, top)
    for warning in said:
        say(f"warning: {warning.message}", err=True)
    return found


def _print_json(path: Path, found: list[Prediction]) -> None:
    line = {"image": str(path), "classes": [asdict(one) for one in found]}
    click.echo(json.dumps(line, separators=(",", ":")))


def _print_text(path: Path, found: list[Prediction]) -> None:
    say(path)
    for one in found:
        name = printable(one.label) or one.index
        say(f"  {one.probability:8.4f}  {name}", as_is=True)


def _print_nothing(path: Path, found: list[Prediction]) -> None:
    """For --quiet, which still warns of images that cannot be read."""
