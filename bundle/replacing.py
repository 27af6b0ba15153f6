"""Several files of a folder replaced together: none of them, or in the end all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STAGED = ".replacement.partial"
COMPLETE = ".replacement"
"""Holds what is to replace the files of its names; kept by a process that was killed meanwhile."""


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder whose files replace those of `folder` when the context ends well.

    Everything is written beside the old files first, so that a full disk changes nothing. From
    the one rename on that ends the writing, an interruption does not stop the replacement; after
    a kill, `finish_replacing` goes on with it. For one process at a time.
    """
    finish_replacing(folder)
    staged = folder / STAGED
    shutil.rmtree(staged, ignore_errors=True)  # what a process that was killed left
    staged.mkdir()
    try:
        yield staged
        for path in _files(staged):
            if (folder / path.relative_to(staged)).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    staged.replace(folder / COMPLETE)
    try:
        finish_replacing(folder)
    finally:
        finish_replacing(folder)


def finish_replacing(folder: Path) -> None:
    """Move the files of a replacement that was killed half-way to their places."""
    complete = folder / COMPLETE
    if complete.is_symlink() or not complete.is_dir():
        return
    for path in _files(complete):
        place = folder / path.relative_to(complete)
        if not place.parent.resolve().is_relative_to(folder.resolve()):
            continue  # a link leads out of the folder
        with suppress(FileNotFoundError):  # another reader was faster
            path.replace(place)
    for path in (*sorted(complete.rglob("*"), reverse=True), complete):
        with suppress(OSError):  # not empty: it is another process's replacement by now
            path.rmdir()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
