"""The same command twice makes the same bytes, whatever the folder and Python's hash seed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import real_runs
from whole_recipe import quantize_onnx

from cmt.bundle.manifest import MANIFEST, SEAL
from cmt.bundle.placing import workspace_folder
from cmt.quantize.recipe import OPENVINO, RECIPES
from cmt.report.document import REPORT_FILES
from cmt.targets.openvino import build_ir
from cmt.targets.registry import TARGETS

AVAILABLE = [name for name, target in TARGETS.items() if target.missing() is None]
BUNDLE_TIMES = {f"bundle/{name}" for name in (MANIFEST, SEAL, *REPORT_FILES)}
"""Hold times, or hashes of files that do."""


@pytest.fixture
def start(
    tiny_weights: Path, photos: Path, tmp_path: Path
) -> Callable[[int], tuple[subprocess.Popen[bytes], Path]]:
    """`start(hash_seed)`: a run that is killed when its bundle is complete, and its workspace."""

    def make(hash_seed: int) -> tuple[subprocess.Popen[bytes], Path]:
        bundle = tmp_path / str(hash_seed) / "bundle"
        text = f"--variant tiny --fp16 --int8 --weights {tiny_weights} --val-data {photos} "
        text += (
            f"--calib-data {photos} --calib-count 6 --val-count 8 --no-tune --bench-seconds 0.1 "
        )
        text += f"--max-drop 100 --out {bundle} "
        text += "--gpu-arch sm86 " if "tensorrt" in AVAILABLE else ""
        text += " ".join(f"--target {target}" for target in AVAILABLE)
        program = f"""if True:
            import sys
            sys.path.append({str(Path(real_runs.__file__).parent)!r})
            from pathlib import Path
            import real_runs
            real_runs.run_here({text.split()!r}, Path({str(tmp_path / f"{hash_seed}.log")!r}),
                               "bundle", "within", {int(signal.SIGKILL)})
        """
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
            cwd=Path(__file__).parents[2],
        )
        return process, workspace_folder(bundle)

    return make


def contents(workspace: Path) -> dict[str, bytes]:
    files = (path for path in workspace.rglob("*") if path.is_file())
    return {path.relative_to(workspace).as_posix(): path.read_bytes() for path in files}


def holds_times(name: str) -> bool:
    """Timings, how long an engine's build took, and the stages' hashes of these."""
    measured = name.startswith(("timing/", "build/tensorrt/"))
    return name in BUNDLE_TIMES or (measured and name.endswith((".json", ".key")))


def manifest_without_times(workspace: Path) -> dict[str, Any]:
    manifest = json.loads((workspace / "bundle" / MANIFEST).read_text())
    for artefact in manifest["artefacts"]:
        artefact.pop("seconds", None)
    return {**manifest, "reports": []}


def test_two_runs_make_the_same_bytes(
    start: Callable[[int], tuple[subprocess.Popen[bytes], Path]],
) -> None:
    runs = [start(hash_seed) for hash_seed in (1, 2)]
    assert [process.wait(300) for process, _ in runs] == [-signal.SIGKILL] * 2
    first, second = (contents(workspace) for _, workspace in runs)
    assert first.keys() == second.keys()
    different = {name for name in first if first[name] != second[name]}
    assert {name for name in different if not holds_times(name)} == set()
    assert {"bundle/openvino/cmt_tiny.int8.bin", "images/calibration/pixels.npy"} < first.keys()
    manifests = [manifest_without_times(workspace) for _, workspace in runs]
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_what_a_process_has_done_before_does_not_show_in_its_openvino_files(
    precision: str, float_graph: Callable[[str], Path], tmp_path: Path
) -> None:
    graph = float_graph("official")
    if precision == "int8":
        batches = [np.ones((2, 3, 64, 64), np.float32)]
        onnx.save(quantize_onnx(onnx.load(graph), batches, RECIPES[OPENVINO]), tmp_path / "q.onnx")
        graph = tmp_path / "q.onnx"
    made = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        build_ir(graph, precision, tmp_path / name / "file.xml")
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert made[0] == made[1]
    names = re.findall(rb'<layer id="\d+" name="([^"]+)"', made[0]["file.xml"])
    assert len(names) == len(set(names))
