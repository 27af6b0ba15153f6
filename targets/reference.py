"""The torch network as files, which every process can load: what all files are compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cmt.targets.base import Array, Batch, Runner
from cmt.targets.settings import Settings

if TYPE_CHECKING:
    from torch import nn

    from cmt.network import CMT

TORCH = "torch"
"""The runtime of the reference; no target, for nothing is built for it."""


def torch_network(path: Path) -> CMT:
    """The reference network: `network.json` says how to build it, `weights.pt` is beside it."""
    import torch

    from cmt.network import build

    config = json.loads(path.read_text())
    model = build(**{**config, "img_size": tuple(config["img_size"])}).eval()
    model.load_state_dict(torch.load(path.with_name("weights.pt"), weights_only=True))
    return model


def load_torch(
    path: Path, threads: int, settings: Settings | None = None, batch: int | None = None
) -> Runner:
    """The reference network, run as it is."""
    import torch

    torch.set_num_threads(threads)
    return torch_runner(torch_network(path))


def torch_runner(model: nn.Module) -> Runner:
    """A network in evaluation mode, on the threads that torch has."""
    import torch

    def run(batch: Batch) -> list[Array]:
        with torch.inference_mode():
            outputs = model(torch.from_numpy(batch))
        return [t.numpy() for t in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return run
