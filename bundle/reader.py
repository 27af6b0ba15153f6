"""A bundle opened for use: every file is checked before anything is loaded from it.

Needs the base install alone. `runtime/cpp/src/bundle.cpp` keeps the same rules.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from cmt import strict_json
from cmt.bundle.manifest import (
    MANIFEST,
    SEAL,
    Manifest,
    files_of,
    is_within,
    parse_manifest,
    refuse,
    seal_of,
)
from cmt.bundle.replacing import newest, state_of
from cmt.calib_data.preprocessing import Preprocessing
from cmt.errors import InputError
from cmt.files import sha256_file
from cmt.targets.entries import Entry, FileEntry

_MOST_TRIES, _BETWEEN_SECONDS = 50, 0.02


@dataclass(frozen=True)
class OpenBundle:
    """A bundle whose files are those that were written.

    Attributes:
        path: the bundle's folder.
        manifest: the content of manifest.json (see `bundle/schema/manifest.schema.json`).
        trusted: somebody who is trusted has signed it (`bundle.signature.check`).
    """

    path: Path
    manifest: Manifest
    trusted: bool = False

    def file(self, entry: FileEntry) -> Path:
        """Where a file of the manifest is just now."""
        return newest(self.path, entry["path"])

    @property
    def artefacts(self) -> list[Entry]:
        """The files that a runtime loads, those with golden outputs."""
        return [entry for entry in self.manifest["artefacts"] if "golden" in entry]

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared for this network."""
        return Preprocessing.from_description(self.manifest["input"])


def open_bundle(folder: Path, only: Collection[str] | None = None) -> OpenBundle:
    """Open a bundle and check every file of it.

    Nothing in it is changed. While another process replaces files of it, it is read again; a
    replacement that was killed half-way is read from where it lies.

    Args:
        only: paths of the files to check, which the manifest must have; None checks all.

    Raises:
        InputError: no bundle, a newer schema, a path that leaves the bundle, or a file that is
            missing or not the one that was written; the message names the file.
    """
    for _ in range(_MOST_TRIES):
        before = state_of(folder, (MANIFEST, SEAL))
        try:
            return _open(folder, only)
        except InputError:
            if state_of(folder, (MANIFEST, SEAL)) == before:
                raise  # nothing has moved meanwhile: the bundle is what it seems to be
        time.sleep(_BETWEEN_SECONDS)
    return _open(folder, only)


def _open(folder: Path, only: Collection[str] | None) -> OpenBundle:
    if not newest(folder, MANIFEST).is_file():
        raise InputError(f"{folder} is no bundle: it has no {MANIFEST}")
    content = read_text(folder, MANIFEST)
    manifest = parse_manifest(content)
    if read_text(folder, SEAL) != seal_of(content):
        refuse(MANIFEST, f"its sha256 is not that of {SEAL}")
    files = files_of(manifest)
    missing = {*(only or ())} - {entry["path"] for entry in files}
    if missing:
        refuse(min(missing), f"{MANIFEST} does not name it")
    for entry in files:
        if only is None or entry["path"] in only:
            check_file(folder, entry)
    return OpenBundle(folder, manifest)


def inside(folder: Path, name: str) -> Path:
    """The file's own place, if that is in the bundle, links followed."""
    if not is_within(name):
        raise InputError(f"{MANIFEST} names '{name}', which is no path within a bundle")
    try:
        path = newest(folder, name).resolve()
        is_odd = path.exists() and not path.is_file()
    except (OSError, RuntimeError, UnicodeError) as error:  # links in a circle, odd characters
        refuse(name, str(error))
    if not path.is_relative_to(folder.resolve()):
        raise InputError(f"'{name}' leads out of the bundle: copy the bundle again, links followed")
    if is_odd:  # reading a pipe would never end
        refuse(name, "it is no file")
    return path


def read_text(folder: Path, name: str) -> bytes:
    """The content of a JSON or text file of the bundle; raises InputError where there is none."""
    try:
        return strict_json.read(inside(folder, name))
    except InputError:
        raise
    except (OSError, ValueError) as error:
        refuse(name, str(error))


def check_file(folder: Path, entry: FileEntry) -> None:
    """Raise InputError unless the file is there and the one that was written."""
    path = inside(folder, entry["path"])
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            refuse(entry["path"], f"{size} bytes in place of {entry['bytes']}")
        if sha256_file(path) != entry["sha256"]:
            refuse(entry["path"], "its sha256 differs")
    except OSError as error:
        refuse(entry["path"], error.strerror or str(error))
