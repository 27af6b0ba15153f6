"""Fixtures of the tests that run the command."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import real_runs


@pytest.fixture
def arguments(tiny_weights: Path, photos: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """`arguments("bundle", "--int8", ...)` of the command, for ONNX Runtime."""

    def make(name: str, *more: str) -> list[str]:
        text = f"--variant tiny --target onnxruntime --weights {tiny_weights} --val-data {photos} "
        text += "--quiet "  # what it says does not hang on how long it takes
        text += f"--calib-data {photos} --no-tune --bench-seconds 0.1 --max-drop 100 --threads 1 "
        return [*text.split(), "--out", str(tmp_path / name), *more]

    return make


@pytest.fixture
def status_of(exported: Path) -> Callable[..., int]:
    """`real_runs.status_of`, which asks torch's exporter once for each network."""
    return partial(real_runs.status_of, exported=exported)
