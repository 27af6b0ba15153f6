"""Several files of a folder replaced together: none of them, or in the end all.

They are written into `.replacement.partial`, and one rename to `.replacement` makes them count:
from then on, whoever reads the folder takes a file from there where it is there. Then they are
moved to their places. Only who writes does that, under a lock; readers change nothing.
`runtime/cpp/src/bundle.cpp` reads by the same rule.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cmt.bundle.locking import lock
from cmt.errors import InputError
from cmt.files import is_own_folder, move, sync

STAGED = ".replacement.partial"
COMPLETE = ".replacement"
"""Holds what is to replace the files of its names; kept by a process that was killed meanwhile."""
LOCK = ".report.lock"
WAITING_SECONDS = 60
"""How long another process may take to write into the folder."""


@contextmanager
def replacing(folder: Path, names: Callable[[], Collection[str]]) -> Iterator[Path]:
    """An empty folder whose files replace those of `folder` when the context ends well.

    Everything is written beside the old files first, so that a full disk changes nothing. From
    the one rename on that ends the writing, an interruption does not stop the replacement; after
    a kill, the next one goes on with it. One process at a time does this.

    Args:
        names: what a replacement that was killed may hold; asked for while the folder is locked.

    Raises:
        filelock.Timeout: another process is replacing files for long.
        InputError: there is a replacement that this user did not make, or of other files.
        OSError: the folder cannot be written to.
    """
    with lock(folder / LOCK, WAITING_SECONDS):
        _finish(folder, names)
        staged = folder / STAGED
        shutil.rmtree(staged, ignore_errors=True)  # what a process that was killed left
        staged.mkdir()
        try:
            yield staged
            for path in _files(staged):
                place = folder / path.relative_to(staged)
                if place.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
                if not place.parent.resolve().is_relative_to(folder.resolve()):
                    raise NotADirectoryError(errno.ENOTDIR, "a link leads elsewhere", str(path))
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        move(staged, folder / COMPLETE)
        try:
            _move_to_places(folder)
        finally:
            _move_to_places(folder)


def newest(folder: Path, name: str) -> Path:
    """Where a file of the folder is just now.

    A replacement that is not at its end holds the newer one, unless somebody made it who owns
    neither the folder nor this process.
    """
    newer = folder / COMPLETE / name
    return newer if _is_believed(folder) and newer.is_file() else folder / name


def state_of(folder: Path, names: Collection[str]) -> object:
    """What changes with every step of a replacement of these files."""
    complete = folder / COMPLETE
    places = [*complete.rglob("*"), *(folder / name for name in names)]
    found = {}
    for path in places:
        with suppress(OSError):
            now = path.stat()
            found[path] = now.st_ino, now.st_mtime_ns, now.st_size
    return found


def _is_believed(folder: Path) -> bool:
    try:
        made = (folder / COMPLETE).lstat()
        owners = {folder.stat().st_uid, os.geteuid() if os.name != "nt" else made.st_uid}
    except OSError:
        return False
    return stat.S_ISDIR(made.st_mode) and made.st_uid in owners


def _finish(folder: Path, names: Callable[[], Collection[str]]) -> None:
    """Go on with a replacement that was killed half-way, if it is one of this user's."""
    complete = folder / COMPLETE
    if not os.path.lexists(complete):
        return
    if not is_own_folder(complete):
        raise InputError(
            f"{complete} is not of this user: have who made it run the same command, or remove it"
        )
    others = {path.relative_to(complete).as_posix() for path in _files(complete)} - {*names()}
    if others:
        raise InputError(
            f"{complete} holds {min(others)}, which no command of this kind writes: remove it"
        )
    _move_to_places(folder)


def _move_to_places(folder: Path) -> None:
    complete = folder / COMPLETE
    if not complete.is_dir():
        return
    changed = {folder}
    for path in _files(complete):
        place = folder / path.relative_to(complete)
        if place.parent.resolve().is_relative_to(folder.resolve()):  # no link leads elsewhere
            path.replace(place)
            changed.add(place.parent)
    for parent in changed:
        sync(parent)
    shutil.rmtree(complete)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
