"""Other people's INT8, as it comes: every option left alone but the images.

Batches are float32 (B, 3, H, W) as the graph takes them; all of them are used.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmt.export.onnx_graph import INPUT_NAME
from cmt.targets.base import Array
from cmt.targets.openvino import openvino_core

RANKING_IMAGES = 300
"""NNCF's default, of the images that its accuracy control ranks layers on."""


class OutOfTimeError(Exception):
    """A quantiser did not finish in the time it was given."""


def nncf_int8(graph: Path, batches: Sequence[Array], path: Path, *, transformer: bool) -> None:
    """`nncf.quantize` in the OpenVINO backend, its default recipe or the one for transformers."""
    import openvino as ov

    nncf = _nncf()
    model_type = nncf.ModelType.TRANSFORMER if transformer else None
    with quiet():
        model = nncf.quantize(
            openvino_core().read_model(graph),
            nncf.Dataset(batches),
            model_type=model_type,
            subset_size=len(batches),
        )
    ov.save_model(model, path, compress_to_fp16=False)


def nncf_controlled_int8(
    graph: Path,
    batches: Sequence[Array],
    labelled: Sequence[tuple[Array, int]],
    path: Path,
    *,
    max_drop: float,
    seconds: float,
) -> None:
    """`nncf.quantize_with_accuracy_control`: layers go back to float until top-1 is near enough.

    Args:
        labelled: single images (1, 3, H, W) and their classes, to judge top-1 on.
        max_drop: accepted drop of top-1, a share.
        seconds: how long it may take.

    Raises OutOfTimeError when they are over; NNCF has no result to give before its end.
    """
    import openvino as ov

    nncf = _nncf()
    deadline = time.monotonic() + seconds

    def top1(model: Any, images: Iterable[tuple[Array, int]]) -> tuple[float, list[float]]:
        right = []
        for image, label in images:
            if time.monotonic() > deadline:
                raise OutOfTimeError(f"not finished in {seconds:g} s")
            right.append(float(model(image)[0].argmax() == label))
        return float(np.mean(right)), right

    with quiet():
        model = nncf.quantize_with_accuracy_control(
            openvino_core().read_model(graph),
            nncf.Dataset(batches),
            nncf.Dataset(labelled),
            top1,
            max_drop=max_drop,
            subset_size=len(batches),
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                ranking_subset_size=RANKING_IMAGES
            ),
        )
    ov.save_model(model, path, compress_to_fp16=False)


def onnxruntime_int8(graph: Path, batches: Iterable[Array], path: Path) -> None:
    """ONNX Runtime's `quantize_static`."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, Array] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT_NAME: batch}

    logging.getLogger().setLevel(logging.ERROR)
    with quiet():
        quantize_static(graph, path, Reader())


_MODELOPT = """
import sys
import numpy
from modelopt.onnx.quantization import quantize

graph, images, name, path = sys.argv[1:]
data = {name: numpy.load(images)}
quantize(graph, "int8", calibration_data=data, calibration_eps=["cpu"], output_path=path)
"""


def modelopt_int8(python: Path, graph: Path, batches: Sequence[Array], path: Path) -> None:
    """NVIDIA ModelOpt's `onnx.quantization.quantize`, by the Python that has it.

    Its packages and ours ask for different versions of the same ones. Calibrates on the CPU.

    Raises RuntimeError with the last line that it printed when it fails.
    """
    images = path.with_name("images.npy")
    np.save(images, np.concatenate(batches))
    command = [str(python), "-c", _MODELOPT, str(graph), str(images), INPUT_NAME, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.parent)
    images.unlink()
    if done.returncode or not path.is_file():
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise RuntimeError(f"ModelOpt ended with status {done.returncode}: {lines[-1]}")


def make_modelopt_environment(folder: Path, version: str) -> Path:
    """A new virtual environment with ModelOpt in it; returns its Python."""
    requirement = f"nvidia-modelopt[onnx]=={version}"
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    # The same torch as here: the package index would give the one with CUDA's libraries.
    install = [str(python), "-m", "pip", "install", "--quiet", "torch==2.13.0", requirement]
    subprocess.run(install, check=True)
    return python


def _nncf() -> Any:
    # Set before NNCF is imported, this keeps its telemetry from reporting usage.
    os.environ["NNCF_CI"] = "1"
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide progress prints and notes of exporters and quantisers."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
