"""A file of a bundle loaded and run, in batches of its own size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from cmt.bundle.reader import OpenBundle
from cmt.errors import GateError, InputError, MachineError, is_out_of_memory
from cmt.targets.base import Array, Batch, Runner
from cmt.targets.entries import Entry
from cmt.targets.registry import LOADERS, load_settings
from cmt.targets.settings import Settings


def load(
    bundle: OpenBundle, artefact: Entry, threads: int, settings: Settings | None = None
) -> Runner:
    """What runs a file of an opened bundle, with these settings, or the manifest's."""
    taken = load_settings(artefact, settings, bundle.trusted)
    return LOADERS[artefact["target"]](bundle.file(artefact), threads, taken, batch_of(bundle))


def batch_of(bundle: OpenBundle) -> int:
    """Images per inference."""
    return bundle.manifest["input"]["shape"][0]


def run_full(runner: Runner, images: Batch, size: int) -> list[Array]:
    """The outputs for 1 to `size` images of a runner that takes `size`.

    A batch that is not full starts over with its first images.
    """
    count = len(images)
    return [output[:count] for output in runner(images[np.arange(size) % count])]


def joined(parts: list[list[Array]]) -> list[Array]:
    """The outputs of several batches as those of one."""
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


@contextmanager
def unusable(path: str) -> Iterator[None]:
    """Turns what runtimes raise, each kinds of its own, into an InputError that names the file."""
    try:
        yield
    except (InputError, GateError, MachineError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"{path} cannot be run ({error}): export the bundle again") from error
