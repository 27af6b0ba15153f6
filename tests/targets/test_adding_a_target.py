"""The page on adding a target is a target: installed as it stands, it goes all the way."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from cmt.bundle.reader import open_bundle
from cmt.report.document import report_of

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_target.md"
MOST_LINES = 40


def block(language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return found[0]


@pytest.fixture
def plug_in(tmp_path: Path) -> Path:
    """A folder into which the page's package is installed."""
    package, folder = tmp_path / "toy-target", tmp_path / "site"
    package.mkdir()
    (package / "toy_target.py").write_text(block("python"))
    (package / "pyproject.toml").write_text(block("toml"))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    options = ["--no-build-isolation", "--target", folder]
    subprocess.run([*install, *options, package], check=True)
    return folder


def run(plug_in: Path, name: str, *arguments: object, env: Mapping[str, str]) -> str:
    program = f"from cmt.commands.main import run; run({name!r})"
    result = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**env, "PYTHONPATH": os.pathsep.join((env["PYTHONPATH"], str(plug_in)))},
        cwd=plug_in,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_example_is_short() -> None:
    code = [line for line in block("python").splitlines() if line.strip()]
    assert len(code) <= MOST_LINES


def test_the_example_exports_measures_benches_and_reports(
    plug_in: Path, tiny_weights: Path, photos: Path, with_tiny: dict[str, str], tmp_path: Path
) -> None:
    command = partial(run, env=with_tiny)
    bundle = tmp_path / "bundle"
    words = f"--variant tiny --weights {tiny_weights} --val-data {photos} --batch 3 --no-tune"
    words += " --bench-seconds 0.1"
    targets = ["--target", "toy", "--target", "onnxruntime"]
    assert "toy" in command(plug_in, "cmt-export", *words.split(), *targets, "--out", bundle)
    assert open_bundle(bundle).artefacts[0]["path"] == "toy/cmt_tiny.fp32.toy"
    row = report_of(open_bundle(bundle))["results"][0]
    assert row["accuracy"]["images"] == 20
    assert row["latency_ms"]["p50"] > 0
    assert "ok      toy/" in command(plug_in, "cmt-bench", bundle, "--verify")
    measured = json.loads(command(plug_in, "cmt-bench", bundle, "--seconds", "0.1", "--json"))
    assert [row["measured_by"] for row in measured["results"]] == ["toy", "onnxruntime"]
    command(
        plug_in, "cmt-report", bundle, "--require", "drop<=100,p50<=10000ms", "--file", "toy/fp32"
    )
    # A machine without the package says so, and runs the rest.
    output = command(tmp_path, "cmt-bench", bundle, "--verify")
    assert "skipped toy/cmt_tiny.fp32.toy: running toy files is not part of this version" in output
    assert "ok      onnxruntime/cmt_tiny.fp32.onnx" in output
