"""The same command twice makes the same bytes, whatever the folder and Python's hash seed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import real_runs

from export.bundle import workspace_folder
from export.targets import TARGETS
from measure.report import REPORT_FILES

AVAILABLE = [name for name, target in TARGETS.items() if target.missing() is None]
MEASURED = {"timing/timings.json", "timing/stage.key", *(f"bundle/{n}" for n in REPORT_FILES)}
"""Files of a run that hold times or follow from them; the manifest has the reports' hashes."""


@pytest.fixture
def run(tiny_weights: Path, photos: Path, tmp_path: Path) -> Callable[..., Path]:
    """`run("name", hash_seed, stage, signal)`: the workspace of a run that this signal ends."""

    def make(name: str, hash_seed: int, victim: str, number: int) -> Path:
        bundle = tmp_path / name / "bundle"
        text = f"--variant tiny --fp16 --int8 --weights {tiny_weights} --val-data {photos} "
        text += f"--calib-data {photos} --calib-count 6 --val-count 8 --bench-seconds 0.1 "
        text += f"--max-drop 100 --resume --out {bundle} "
        text += "--gpu-arch sm86 " if "tensorrt" in AVAILABLE else ""
        text += " ".join(f"--target {target}" for target in AVAILABLE)
        program = f"""if True:
            import sys
            sys.path.append({str(Path(real_runs.__file__).parent)!r})
            from pathlib import Path
            import real_runs
            real_runs.run_here({text.split()!r}, Path({str(tmp_path / "log")!r}), {victim!r},
                               "within", {int(number)})
        """
        process = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
            cwd=Path(__file__).parents[2],
            check=False,
        )
        assert process.returncode == (130 if number == signal.SIGTERM else -number)
        assert not bundle.exists()
        return workspace_folder(bundle)

    return make


def contents(workspace: Path) -> dict[str, bytes]:
    """A run's files by name, but for those of `MEASURED`; the manifest without times."""
    files = (path for path in workspace.rglob("*") if path.is_file())
    found = {path.relative_to(workspace).as_posix(): path.read_bytes() for path in files}
    for name in MEASURED:
        del found[name]
    return found


def test_two_runs_make_the_same_bytes_also_where_one_was_stopped(run: Callable[..., Path]) -> None:
    first = contents(run("first", 1, "bundle", signal.SIGKILL))
    run("second", 2, f"build/{AVAILABLE[-2]}/int8", signal.SIGTERM)
    second = contents(run("second", 2, "bundle", signal.SIGKILL))
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} == set()
