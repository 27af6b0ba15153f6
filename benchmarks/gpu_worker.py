"""The processes of `benchmarks/gpu.py`: `measure.worker` and the torch network in FP16 on the GPU.

    python -m benchmarks.gpu_worker RUNTIME FILE THREADS SETTINGS.json

For torch, FILE is a bundle's manifest: the network is built as that says, with the weights that
torch starts from, which times do not depend on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cmt.measure.worker as worker
from cmt.targets.base import Array, Batch
from cmt.targets.registry import LOADERS
from cmt.targets.settings import Settings

EAGER = "torch eager FP16"
COMPILED = "torch.compile FP16"
MODES: Mapping[tuple[str, str], str | None] = {
    (EAGER, "off"): None,
    (COMPILED, "off"): "default",
    (COMPILED, "on"): "reduce-overhead",
}
"""(name, CUDA graph) -> the mode of `torch.compile`; None runs the network as it is."""


def runtime_of(name: str, graph: str) -> str:
    """What `LOADERS` calls one of `MODES`."""
    return f"{name}, CUDA graph {graph}"


def missing_torch() -> str | None:
    """Why there is no torch on a GPU here; None where there is."""
    if find_spec("torch") is None:
        return "torch is not installed"
    import torch

    return None if torch.cuda.is_available() else f"torch {torch.__version__} sees no GPU"


class TorchOnGpu:
    """A runner; `gpu_ms` is what the GPU took for the network, as `EngineRunner` has it."""

    def __init__(self, manifest: Path, mode: str | None) -> None:
        import torch

        from cmt.network import build

        said = json.loads(manifest.read_text(encoding="utf-8"))
        shape, layout = said["input"]["shape"], said["input"]["layout"]
        size = tuple(shape[1:3] if layout == "NHWC" else shape[2:])
        network = build(said["variant"], said["family"], size, len(said["labels"]) or 1000)
        network = network.eval().half().cuda()
        self._network: Any = network if mode is None else torch.compile(network, mode=mode)
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.gpu_ms = 0.0

    def __call__(self, images: Batch) -> list[Array]:
        import torch

        with torch.inference_mode():
            given = torch.from_numpy(images).cuda().half()
            self._begin.record()
            answers = self._network(given)
            self._end.record()
            found = answers.float().cpu().numpy()
        self.gpu_ms = self._begin.elapsed_time(self._end)
        return [found]


def _load(
    mode: str | None,
    path: Path,
    threads: int,
    settings: Settings | None = None,
    batch: int | None = None,
) -> TorchOnGpu:
    return TorchOnGpu(path, mode)


def main(*arguments: str) -> None:
    """Serve bursts until standard input ends."""
    LOADERS.update({runtime_of(*key): partial(_load, mode) for key, mode in MODES.items()})
    worker.main(*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
