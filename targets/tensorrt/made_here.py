"""Which engines this user built: those need nobody else to vouch for them.

An engine is native code. A file named by its sha256 in a folder of the user's cache, which nobody
else may read or write, says that it was built by this program and not brought by a bundle.
"""

from __future__ import annotations

import os
from pathlib import Path

from cmt.errors import InputError
from cmt.files import cache_folder, is_own_folder, sha256_file

UNTRUSTED = "an engine is native code and nobody vouches for this one"


def record(engine: Path) -> None:
    """Remember an engine that was just built; raises InputError where that cannot be kept."""
    folder = _folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(folder):
            raise InputError(f"others may write to {folder}: remove it, and build the engine again")
        (folder / sha256_file(engine)).touch(mode=0o600)
    except OSError as error:
        raise InputError(
            f"cannot keep in {folder} that this engine was built here ({error.strerror}): "
            "set XDG_CACHE_HOME to a folder of yours"
        ) from error


def is_recorded(sha256: str) -> bool:
    """Whether this user built the engine with these bytes."""
    folder = _folder()
    try:
        return _is_private(folder) and (folder / sha256).is_file()
    except OSError:
        return False


def _folder() -> Path:
    return cache_folder() / "engines"


def _is_private(folder: Path) -> bool:
    return is_own_folder(folder) and (os.name == "nt" or folder.stat().st_mode & 0o077 == 0)
