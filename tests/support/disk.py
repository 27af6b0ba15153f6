"""What a disk would hold after a power loss, told from the calls that a program makes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _state(path: Path) -> tuple[int, int, int]:
    now = path.stat()
    return now.st_ino, now.st_mtime_ns, now.st_size


class Disk:
    """Watches `os.fsync`, renames and removals.

    Attributes:
        faults: what a power loss would have found: a name without its content, or nothing.
        renames: how many there were.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.renames = 0
        self._on_disk: set[tuple[int, int, int]] = set()
        self._unsaved: set[Path] = set()

    def synced(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        self._on_disk.add(_state(path))
        self._unsaved.discard(path)

    def renaming(self, source: Path, place: Path) -> None:
        self.renames += 1
        inside = source.rglob("*") if source.is_dir() else ()
        for path in (source, *inside):
            if not path.is_symlink() and _state(path) not in self._on_disk:
                self.faults.append(f"{path} is renamed before it is on the disk")
        self._unsaved |= {source.parent.resolve(), place.parent.resolve()}

    def removing(self, path: Path) -> None:
        self._unsaved = {folder for folder in self._unsaved if not folder.is_relative_to(path)}
        if self._unsaved:
            self.faults.append(f"{path} goes before {min(self._unsaved)} has the new names")


@contextmanager
def watched() -> Iterator[Disk]:
    disk, (fsync, replace, rmdir) = Disk(), (os.fsync, os.replace, os.rmdir)

    def watched_fsync(descriptor: int) -> None:
        fsync(descriptor)
        disk.synced(descriptor)

    def watched_replace(source: Path, place: Path, **options: int) -> None:
        disk.renaming(Path(source), Path(place))
        replace(source, place, **options)

    def watched_rmdir(path: Path, **options: int) -> None:
        disk.removing(Path(path))
        rmdir(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", watched_fsync)
        for name in ("replace", "rename"):
            patch.setattr(os, name, watched_replace)
        patch.setattr(os, "rmdir", watched_rmdir)
        yield disk
