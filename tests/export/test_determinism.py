"""The same command twice makes the same bytes, whatever the folder and Python's hash seed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.bundle import workspace_folder
from export.targets import TARGETS
from measure.report import REPORT_FILES

AVAILABLE = [name for name, target in TARGETS.items() if target.missing() is None]
MEASURED = {"timing/timings.json", "timing/stage.key", *(f"bundle/{n}" for n in REPORT_FILES)}
"""Files of a run that hold times or follow from them; the manifest has the reports' hashes."""


@pytest.fixture
def run(tiny_weights: Path, photos: Path, tmp_path: Path) -> Callable[..., Path]:
    """`run("name", hash_seed, "--seed", "1")`: the workspace of a run just before its end."""

    def make(name: str, hash_seed: int, *more: str) -> Path:
        bundle = tmp_path / name / "bundle"
        targets = [word for target in AVAILABLE for word in ("--target", target)]
        text = f"--variant tiny --fp16 --int8 --weights {tiny_weights} --val-data {photos} "
        text += f"--calib-data {photos} --calib-count 6 --val-count 8 --bench-seconds 0.1 "
        text += f"--max-drop 100 --out {bundle} "
        if "tensorrt" in AVAILABLE:
            text += "--gpu-arch sm86 "
        program = f"""if True:
            import runpy, signal
            from pathlib import Path
            from cmt.variants import Variant
            given = {{
                "ARGUMENTS": {[*text.split(), *targets, *more]!r},
                "LOG": Path({str(tmp_path / f"{name}.log")!r}),
                "VICTIM": "bundle",
                "MOMENT": "within",
                "SIGNAL": signal.SIGKILL,
                "TINY": Variant("tiny", 32, 8, (8, 16, 32, 64), (1, 1, 2, 1),
                                {{"official": 3.6, "flyegle": 3.6}}),
            }}
            runpy.run_path({str(Path(__file__).with_name("killed_run.py"))!r}, {{"GIVEN": given}})
        """
        process = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == -signal.SIGKILL, process.stderr
        return workspace_folder(bundle)

    return make


def contents(workspace: Path) -> dict[str, bytes]:
    files = (path for path in workspace.rglob("*") if path.is_file())
    found = {path.relative_to(workspace).as_posix(): path.read_bytes() for path in files}
    return {name: content for name, content in found.items() if name not in MEASURED}


def without_times(built: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in built.items() if key != "seconds"}


def test_two_runs_make_the_same_bytes(run: Callable[..., Path]) -> None:
    first, second = (contents(run(f"{seed}", seed)) for seed in (1, 2))
    assert first.keys() == second.keys()
    different = {name for name in first if first[name] != second[name]}
    assert different == set()
