"""The simulated TensorRT, CUDA and GPU that `benchmarks/gpu.py --rehearse` runs against.

    python -m benchmarks.gpu_rehearsal RUNTIME FILE THREADS SETTINGS.json    # as `gpu_worker`

They are those of the tests, which hold every name and argument against the bindings. An engine
answers the bundle's golden images as the graph that it was built from, all others with zeros.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

import benchmarks.gpu_worker as gpu_worker
from benchmarks.gpu import golden_of
from cmt.bundle.arrays import bundle_array
from cmt.bundle.golden import golden_images
from cmt.bundle.reader import OpenBundle
from cmt.targets.base import Array, Batch
from cmt.targets.tensorrt import device
from cmt.targets.tensorrt.device import Gpu

SHAPES = "CMT_SIMULATED_SHAPES"
"""The environment variable that tells a worker the shapes of inputs and outputs, as JSON."""
GPU = Gpu("sm89", "simulated", "CUDA 12.6")


def simulate(bundle: OpenBundle, batch: int) -> None:
    """Put a GPU into the place of none, for this process and its workers, for one batch."""
    said, answers = bundle.manifest, _answers(bundle)
    shapes = {said["input"]["name"]: [batch, *said["input"]["shape"][1:]]}
    for name, known in zip(said["outputs"], next(iter(answers.values())), strict=True):
        shapes[name] = [batch, *known.shape[1:]]
    os.environ[SHAPES] = json.dumps(shapes)
    machine = _install()
    images = [image.tobytes() for image in bundle.preprocessing.feed(golden_images(bundle))]

    def compute(given: Batch) -> list[Array]:
        found = [np.zeros(shape, np.float32) for shape in list(shapes.values())[1:]]
        own = answers.get(hashlib.sha256(machine.parsed).hexdigest(), [])
        for place, image in enumerate(given):
            if own and image.tobytes() in images:
                for output, known in zip(found, own, strict=True):
                    output[place] = known[images.index(image.tobytes())]
        return found

    machine.compute = compute


def _answers(bundle: OpenBundle) -> dict[str, list[Array]]:
    """Golden outputs by the sha256 of the graph that gives them."""
    return {
        graph["sha256"]: [
            bundle_array(bundle, entry, np.float32)
            for entry in golden_of(bundle, graph["precision"])["outputs"]
        ]
        for graph in bundle.manifest["artefacts"]
        if graph["target"] == "onnx"
    }


def _install() -> Any:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
    double = importlib.import_module("tensorrt_double")
    shapes = {name: tuple(shape) for name, shape in json.loads(os.environ[SHAPES]).items()}
    machine = double.Machine(double.VERSIONS[-1], shapes=shapes)
    machine.compute = lambda _: [np.zeros(s, np.float32) for s in list(shapes.values())[1:]]
    sys.modules.update(double.modules_of(machine, double.CUDA_VERSIONS[-1]))
    device.find_gpu = lambda: GPU
    return machine


if __name__ == "__main__":
    _install()
    gpu_worker.main(*sys.argv[1:])
