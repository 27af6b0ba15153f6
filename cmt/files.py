"""Files read without surprises, and files that a power loss finds whole."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """A file opened to be read; raises OSError for what is none.

    A pipe would wait for somebody to write, a device such as /dev/zero has no end.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - takes an opener
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_regular(path: Path, most: int) -> bytes:
    """The content of a file; raises ValueError for one of more than `most` bytes, OSError."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return content


def sha256_file(path: Path) -> str:
    """Hex digest of a regular file, read in pieces."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Have the disk hold what is in a file, or which names are in a folder."""
    windows, folder = os.name == "nt", path.is_dir()
    if windows and folder:
        return  # which nothing can open there
    # Some file systems of networks sync no folders, and some folders may only be written to.
    with suppress(OSError) if folder else nullcontext():
        descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_all(path: Path) -> None:
    """`sync` a file, or a folder and all that is in it."""
    if path.is_dir():
        for folder, _, names in os.walk(path, topdown=False):
            for name in names:
                place = Path(folder, name)
                if place.is_file() and not place.is_symlink():
                    sync(place)
            sync(Path(folder))
    else:
        sync(path)


def rename(source: Path, place: Path) -> None:
    """Give what is on the disk another name, which is on the disk before this returns."""
    source.replace(place)
    sync(place.parent)
    if source.parent != place.parent:
        sync(source.parent)


def move(source: Path, place: Path) -> None:
    """Rename what is complete, so that a power loss leaves the old thing or all of the new one.

    Its content is on the disk before it has its name, and the name before this returns: what goes
    afterwards is not missed.
    """
    sync_all(source)
    rename(source, place)


def cache_folder() -> Path:
    """What a user's later runs may use: `$XDG_CACHE_HOME/cmt-export` or `~/.cache/cmt-export`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cmt-export"


def is_own_folder(path: Path) -> bool:
    """Whether this is a folder, no link to one, that this user made."""
    made = path.lstat()
    if not stat.S_ISDIR(made.st_mode):
        return False
    return os.name == "nt" or made.st_uid == os.geteuid()


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file that has its name only once all of it is on the disk."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        move(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sources_of(package: ModuleType) -> list[Path]:
    """All Python files of a package and of those within it, which a checkout has beside it."""
    root = Path(package.__path__[0])
    folders = [folder for folder in (*root.iterdir(), *root.parent.iterdir()) if folder.is_dir()]
    found = [root]
    for name in sorted({folder.name for folder in folders if folder.name.isidentifier()}):
        spec = find_spec(f"{package.__name__}.{name}")
        if spec is not None and spec.origin is not None:
            found.append(Path(spec.origin).parent)
    return sorted({file for folder in found for file in folder.rglob("*.py")})
