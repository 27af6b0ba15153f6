"""The C++ tools open bundles of every released schema."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

STORED = sorted((Path(__file__).parents[1] / "reference" / "bundles").glob("schema_*.zip"))


@pytest.mark.parametrize("archive", STORED, ids=lambda path: path.stem)
def test_a_stored_bundle_verifies(runtime: Path, archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path)
    command = [runtime / "cmt_check", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "ok      openvino/cmt_tiny.int8.xml" in result.stdout
