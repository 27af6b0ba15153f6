"""C++ opens bundles of every released schema, and keeps its answers and its memory."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import long_running
import pytest

STORED = sorted((Path(__file__).parents[1] / "reference" / "bundles").glob("schema_*.zip"))


@pytest.mark.usefixtures("exact_int8_sums")
@pytest.mark.parametrize("archive", STORED, ids=lambda path: path.stem)
def test_a_stored_bundle_verifies_and_runs_long(
    runtime: Path, archive: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path)
    command = [runtime / "cmt_check", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "ok      openvino/cmt_tiny.int8.xml" in result.stdout
    program = runtime / "tests" / "long_running"
    row = long_running.in_cpp(program, tmp_path, "openvino", inferences=500, loads=10, threads=8)
    if runtime.name == "sanitized":  # which holds freed memory back, to catch its use
        row |= {"growth_percent": 0.0, "load_growth_percent": 0.0}
    assert long_running.problems(row) == 0, row
