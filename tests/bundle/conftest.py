"""A small bundle that an earlier version made, so that no test here has to export one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmt.bundle.manifest import MANIFEST, file_entries
from cmt.bundle.writer import describe_file, write_manifest

Manifest = dict[str, Any]


@pytest.fixture
def manifest(stored: Path) -> Manifest:
    """Its manifest."""
    return json.loads((stored / MANIFEST).read_bytes())


@pytest.fixture
def rewrite() -> Callable[..., None]:
    """`rewrite(bundle, change)`: its manifest changed, and all hashes made anew.

    As somebody who may write to a bundle would.
    """

    def edit(folder: Path, change: Callable[[Manifest], object] = lambda _: None) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        change(manifest)
        for entry in file_entries(manifest):
            entry |= describe_file(folder, folder / entry["path"])
        write_manifest(folder, manifest)

    return edit
