"""Stages of a run, each done once: finished work survives an interruption.

A stage is a folder under the workspace, filled under a temporary name and renamed when it is
complete. Its key is the hash of everything that decides its content; on `--resume` a stage
whose key is unchanged is taken as it stands.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Stages:
    """The finished stages of one run.

    Args:
        workspace: folder of the run's intermediate files.
        common: what every stage depends on (versions, seed), JSON-serialisable.
    """

    def __init__(self, workspace: Path, common: dict[str, Any]) -> None:
        self.workspace = workspace
        self._common = common
        self._keys: dict[str, str] = {}

    def run(
        self,
        name: str,
        inputs: dict[str, Any],
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
        parents = {parent: self._keys[parent] for parent in after}
        content = {"stage": name, "inputs": inputs, "parents": parents, "common": self._common}
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        self._keys[name] = key
        folder = self.workspace / name
        marker = folder / "stage.key"
        if marker.is_file() and marker.read_text() == key:
            return folder
        temporary = folder.with_name(folder.name + ".unfinished")
        for stale in (temporary, folder):
            shutil.rmtree(stale, ignore_errors=True)
        temporary.mkdir(parents=True)
        make(temporary)
        (temporary / "stage.key").write_text(key)
        temporary.replace(folder)
        return folder
