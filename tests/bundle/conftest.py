"""A small bundle that an earlier version made, so that no test here has to export one."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmt.bundle.manifest import MANIFEST, file_entries
from cmt.bundle.writer import describe_file, write_manifest

STORED = Path(__file__).parents[1] / "reference" / "bundles" / "schema_1.zip"
Manifest = dict[str, Any]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A bundle of one's own: INT8 files of OpenVINO, in BF16, and ONNX Runtime; two labels."""
    with zipfile.ZipFile(STORED) as archive:
        archive.extractall(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def manifest() -> Manifest:
    """Its manifest."""
    with zipfile.ZipFile(STORED) as archive:
        return json.loads(archive.read(MANIFEST))


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
