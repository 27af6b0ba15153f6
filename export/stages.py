"""Stages of a run, each done once: finished work survives an interruption.

A stage is a folder under the workspace, filled under a temporary name and renamed when it is
complete, so that a process killed at any moment leaves none that looks finished. Its key is the
hash of everything that decides its content, the bytes of the stages that it reads among them;
on `--resume` a stage whose key and bytes are unchanged is taken as it stands.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cmt.files import move, sha256_file

MARKER = "stage.key"


class Stages:
    """The finished stages of one run.

    Args:
        workspace: folder of the run's intermediate files.
        common: what every stage depends on (versions, seed), JSON-serialisable.
    """

    def __init__(self, workspace: Path, common: Mapping[str, Any]) -> None:
        self.workspace = workspace
        self._common = common
        self._finished: dict[str, tuple[str, str]] = {}

    def run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        make: Callable[[Path], None],
        after: Sequence[str] = (),
    ) -> Path:
        """Return the folder of stage `name`, made now unless it is already complete.

        Args:
            name: unique in the run; may hold one slash.
            inputs: all options that the stage's content depends on, JSON-serialisable.
            make: fills an empty folder.
            after: names of the stages whose content `make` reads.
        """
        key, folder = self._key(name, inputs, after), self.workspace / name
        if self._finished.get(name, ("", ""))[0] == key:
            return folder
        if not _is_finished(folder, key):
            temporary = folder.with_name(folder.name + ".unfinished")
            for stale in (temporary, folder):
                shutil.rmtree(stale, ignore_errors=True)
            temporary.mkdir(parents=True)
            make(temporary)
            (temporary / MARKER).write_text(f"{key} {_digest(temporary)}")
            move(temporary, folder)
        _, digest = (folder / MARKER).read_text().split()
        self._finished[name] = key, digest
        return folder

    def has(self, name: str, inputs: Mapping[str, Any], after: Sequence[str] = ()) -> bool:
        """Whether `run` with these arguments would find the stage complete."""
        key = self._key(name, inputs, after)
        known = self._finished.get(name, ("", ""))[0] == key
        return known or _is_finished(self.workspace / name, key)

    def _key(self, name: str, inputs: Mapping[str, Any], after: Sequence[str]) -> str:
        parents = {parent: self._finished[parent] for parent in after}
        content = {"stage": name, "inputs": inputs, "parents": parents, "common": self._common}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_finished(folder: Path, key: str) -> bool:
    marker = folder / MARKER
    return marker.is_file() and marker.read_text() == f"{key} {_digest(folder)}"


def _digest(folder: Path) -> str:
    """sha256 of the names and bytes of a stage's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MARKER:
            content = sha256_file(path)
            digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()
