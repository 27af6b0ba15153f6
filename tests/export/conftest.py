"""Fixtures of the tests that run the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmt.export import file_maker
from cmt.targets.reference import TORCH


@pytest.fixture
def arguments(tiny_weights: Path, photos: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """`arguments("bundle", "--int8", ...)` of the command, for ONNX Runtime."""

    def make(name: str, *more: str) -> list[str]:
        text = f"--variant tiny --target onnxruntime --weights {tiny_weights} --val-data {photos} "
        text += f"--calib-data {photos} --bench-seconds 0.1 --max-drop 100 --out {tmp_path / name}"
        return [*text.split(), *more]

    return make


@pytest.fixture
def tiny_in_process(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny network is a variant that `export.export` takes in this process."""
    measure = file_maker.measure_alternately

    def measure_files(files: dict[str, Any], *arguments: Any) -> Any:
        # Processes of their own do not know the tiny network: a file stands in.
        if TORCH in files:
            file = next(file for name, file in files.items() if name.endswith("/fp32"))
            files = {**files, TORCH: file}
        return measure(files, *arguments)

    monkeypatch.setattr(file_maker, "measure_alternately", measure_files)
