"""The copy of a bundle that a worker keeps: each file travels there once, and is checked by hash.

`~/.cache/cmt-export/fleet` on the worker's machine has a folder for each bundle. The manifest comes
last, so that a copy that has one is whole.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cmt.bundle.manifest import MANIFEST, SEAL, files_of, is_within
from cmt.bundle.reader import OpenBundle, check_file, open_bundle
from cmt.bundle.signature import signed_bytes
from cmt.bundle.writer import describe_file
from cmt.errors import InputError
from cmt.files import cache_folder, is_own_folder, move
from cmt.targets.entries import FileEntry

PIECE = 2**22
"""Bytes of a file that travel at a time."""


class IncompleteError(Exception):
    """A worker has not all files of a bundle."""


def identity(bundle: OpenBundle) -> str:
    """What a bundle is known by, whatever was added to its report."""
    return hashlib.sha256(signed_bytes(bundle.manifest)).hexdigest()


def files_to_send(bundle: OpenBundle) -> list[FileEntry]:
    """Every file that a copy has, in the order in which they are to go."""
    own = [describe_file(bundle.path, bundle.path / name) for name in (MANIFEST, SEAL)]
    return [*files_of(bundle.manifest), *own]


def pieces(path: Path) -> Iterator[tuple[int, bytes]]:
    """A file's content and where each piece of it begins; an empty file has one."""
    with path.open("rb") as file:
        begin, content = 0, file.read(PIECE)
        while begin == 0 or content:
            yield begin, content
            begin, content = begin + PIECE, file.read(PIECE)


def copy_folder(bundle: str) -> Path:
    """Where this machine keeps the copy of a bundle, by its `identity`."""
    if len(bundle) != 64 or not set(bundle) <= set("0123456789abcdef"):
        raise InputError(f"'{bundle[:80]}' is no bundle's identity")
    folder = cache_folder() / "fleet" / bundle
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_own_folder(folder):
        raise InputError(f"{folder} is another user's: set XDG_CACHE_HOME to a folder of yours")
    return folder


def open_copy(bundle: str, trusted: bool) -> OpenBundle:
    """The copy, every file of it checked.

    Raises:
        IncompleteError: there is none, or one of its files is not what it was.
    """
    folder = copy_folder(bundle)
    try:
        return replace(open_bundle(folder), trusted=trusted)
    except InputError as error:
        raise IncompleteError(str(error)) from error


def wanted(bundle: str, files: Sequence[FileEntry]) -> list[str]:
    """Paths of the files that the copy here lacks."""
    folder = copy_folder(bundle)
    missing = []
    for entry in files:
        try:
            check_file(folder, entry)
        except InputError:
            missing.append(entry["path"])
    return missing


def receive(bundle: str, entry: FileEntry, begin: int, content: bytes) -> None:
    """Take a piece of a file; with its last one it has its name.

    Raises:
        InputError: the path is none within a bundle, or the file is not what its entry says.
    """
    if not is_within(entry["path"]):
        raise InputError(f"'{entry['path'][:200]}' is no path within a bundle")
    folder = copy_folder(bundle)
    path = folder / entry["path"]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb" if begin == 0 else "r+b") as file:
        file.seek(begin)
        file.write(content)
    if begin + len(content) >= entry["bytes"]:
        arrived: Any = {**entry, "path": partial.relative_to(folder).as_posix()}
        try:
            check_file(folder, arrived)
            move(partial, path)
        finally:
            partial.unlink(missing_ok=True)
