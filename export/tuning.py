"""Fine-tuning within a run: each epoch a stage, so that an interrupted run goes on after it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cmt.network import CMT
from cmt.rewrite import InferenceCMT
from export.candidates import Graph
from quantize.finetune import train_epoch
from quantize.recipe import SCHEMES

if TYPE_CHECKING:
    from export.pipeline import Run

Network = CMT | InferenceCMT
OWN_IMAGES = "fine-tuning"
"""What the run calls the images of --qat-data."""


class FineTuning:
    """The fine-tuned networks of a run.

    Args:
        run: with its options, stages and calibration images.
        make_network: the network that a graph is exported from, before fine-tuning.
    """

    def __init__(self, run: Run, make_network: Callable[[Graph], Network]) -> None:
        self._run, self._make_network = run, make_network
        name = OWN_IMAGES if OWN_IMAGES in run.sources else "calibration"
        self.images = run.images[name]
        # The stand-ins for GELU are fitted on calibration images, whatever the rest learns on.
        self._after = list(dict.fromkeys(["reference", "images/calibration", f"images/{name}"]))
        self.errors: dict[str, list[float]] = {}
        """Each epoch's mean square error relative to the teacher's outputs, by scheme."""

    def stage(self, graph: Graph) -> str:
        """Fine-tune the network of a graph; returns the name of the last epoch's stage."""
        run, stage = self._run, ""
        scheme, epochs = SCHEMES[str(graph.tuned)], run.options.qat
        errors = []
        for epoch in range(epochs):
            before, stage = stage, f"tuned/{scheme.name}-{epoch + 1}"

            def make(folder: Path, epoch: int = epoch, before: str = before) -> None:
                network = copy.deepcopy(self._make_network(graph))
                state = self._load(network, before) if before else None
                title = f"fine-tuning for {scheme.name} INT8, epoch {epoch + 1} of {epochs}"
                with run.progress.task(title, len(self.images)) as advance:
                    state = train_epoch(
                        network,
                        run.inputs.model,
                        scheme,
                        self.images,
                        epoch=epoch,
                        epochs=epochs,
                        seed=run.options.seed,
                        state=state,
                        advance=advance,
                    )
                torch.save({"network": network.state_dict(), **state}, folder / "state.pt")
                (folder / "error.json").write_text(json.dumps(state["error"]))

            inputs = {"epochs": epochs, "threads": run.options.thread_count}
            after = [*self._after, *([before] if before else [])]
            folder = run.stages.run(stage, inputs, make, after)
            errors.append(json.loads((folder / "error.json").read_text()))
        self.errors[scheme.name] = errors
        return stage

    def tuned(self, graph: Graph) -> Network:
        """The network that `stage` fine-tuned, as its last epoch left it."""
        network = copy.deepcopy(self._make_network(graph))
        self._load(network, self.stage(graph))
        return network

    def _load(self, network: Network, stage: str) -> dict[str, Any]:
        """Give a network the weights that an epoch left; returns the rest of its state."""
        path = self._run.stages.workspace / stage / "state.pt"
        state = torch.load(path, weights_only=True)
        network.load_state_dict(state.pop("network"))
        return state
