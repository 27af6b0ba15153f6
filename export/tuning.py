"""Fine-tuning within a run: each epoch a stage, so that an interrupted run goes on after it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cmt.checkpoints import save_torch
from cmt.errors import InputError
from cmt.network import CMT
from cmt.rewrite import InferenceCMT
from export.candidates import Graph
from quantize.choice import choose
from quantize.finetune import (
    Histograms,
    fit_weights,
    held_out_error,
    observe_inputs,
    train_epoch,
)
from quantize.ranges import METHODS, load_histograms, save_histograms
from quantize.recipe import SCHEMES, Scheme

if TYPE_CHECKING:
    from export.pipeline import Run

Network = CMT | InferenceCMT
OWN_IMAGES = "fine-tuning"
"""What the run calls the images of --qat-data."""
_START, _TUNED = "start.pt", "state.pt"
"""In stages: what the first epoch starts from, and what an epoch left."""
_HISTOGRAMS = "histograms.npz"
"""In stages: of the inputs, to set the next epoch's ranges."""


class FineTuning:
    """The fine-tuned networks of a run.

    Args:
        run: with its options, stages and calibration images.
        make_network: the network that a graph is exported from, before fine-tuning, a new one each
            time.
    """

    def __init__(self, run: Run, make_network: Callable[[Graph], Network]) -> None:
        self._run, self._make_network = run, make_network
        name = OWN_IMAGES if OWN_IMAGES in run.selections else "calibration"
        # What judges the epochs teaches nothing, where there is enough to hold out.
        judges = run.images["ranking"].digests if run.narrowing.held_out else []
        self.images = run.images[name].without(judges)
        # The stand-ins for GELU are fitted on calibration images, whatever the rest learns on.
        sets = ["calibration", "ranking", name]
        self._after = list(dict.fromkeys(["reference", *(f"images/{images}" for images in sets)]))
        self.schemes: dict[str, dict[str, Any]] = {}
        """By scheme: each epoch's `training` error; the error on held-out images `held_out`, first
        by calibration alone; after how many epochs the network was `chosen`; and the `method` of
        choosing ranges that it learned with, the best before any epoch. Errors are mean square
        ones, relative to the teacher's outputs; None of an epoch that diverged, the last then."""

    def stage(self, graph: Graph) -> str:
        """Fine-tune the network of a graph; returns the stage of the network with the least error.

        That may be the first one, which has nothing fine-tuned: epochs can also do harm.
        """
        scheme = SCHEMES[str(graph.tuned)]
        stages = [self._calibrated(graph, scheme)]
        method = json.loads(self._file(stages[0], "error.json").read_text())["method"]
        for epoch in range(self._run.options.qat):
            stages.append(self._epoch(graph, scheme, method, epoch, stages[-1]))
            if not self._file(stages[-1], _TUNED).exists():
                break
        errors = [json.loads(self._file(stage, "error.json").read_text()) for stage in stages]
        held_out = [error["held_out"] for error in errors]
        chosen = int(np.argmin([np.inf if error is None else error for error in held_out]))
        self.schemes[scheme.name] = {
            "training": [error["training"] for error in errors[1:]],
            "held_out": held_out,
            "chosen": chosen,
            "method": method,
        }
        return stages[chosen]

    def method(self, scheme: str) -> str | None:
        """How the ranges are chosen that a scheme's network learned with; None where it did not.

        To be asked after `stage`.
        """
        found = self.schemes[scheme]
        return found["method"] if found["chosen"] else None

    def tuned(self, graph: Graph) -> Network:
        """The network that `stage` chose."""
        network = self._make_network(graph)
        path = self._file(self.stage(graph), _TUNED)
        if path.exists():
            self._load(network, path)
        return network

    def _calibrated(self, graph: Graph, scheme: Scheme) -> str:
        """The stage with the error of calibration alone, and with what the first epoch starts from.

        Both are chosen as in a run without fine-tuning, and have to be beaten.
        """
        run, stage = self._run, f"tuned/{scheme.name}-0"

        def make(folder: Path) -> None:
            network = self._make_network(graph)
            calibration = run.images["calibration"]
            title = f"measuring {scheme.name} INT8 before fine-tuning"
            with run.progress.task(title, len(METHODS)) as advance:
                histograms = observe_inputs(network, scheme, calibration)

                def judge(method: str, fitted: Network | None) -> float:
                    judged = network if fitted is None else fitted
                    advance(fitted is None)
                    return self._held_out_error(judged, scheme, histograms, method)

                def fit(method: str) -> Network:
                    own = copy.deepcopy(network)
                    fit_weights(own, scheme, calibration, histograms, method)
                    return own

                choice = choose(METHODS, judge, fit)
            start = network if choice.fitted is None else choice.fitted
            save_torch({"network": start.state_dict()}, folder / _START)
            save_histograms(histograms, folder / _HISTOGRAMS)
            content = {"held_out": choice.error, "method": choice.method}
            (folder / "error.json").write_text(json.dumps(content))

        run.stages.run(stage, self._inputs, make, self._after)
        return stage

    def _epoch(self, graph: Graph, scheme: Scheme, method: str, epoch: int, before: str) -> str:
        """The stage of an epoch, counted from 0, on what the stage `before` left.

        An epoch that diverged leaves no network.
        """
        run, stage, epochs = self._run, f"tuned/{scheme.name}-{epoch + 1}", self._run.options.qat

        def make(folder: Path) -> None:
            network = self._make_network(graph)
            state = self._load(network, self._file(before, _TUNED if epoch else _START))
            title = f"fine-tuning for {scheme.name} INT8, epoch {epoch + 1} of {epochs}"
            with run.progress.task(title, len(self.images)) as advance:
                state = train_epoch(
                    network,
                    run.inputs.model,
                    scheme,
                    self.images,
                    histograms=load_histograms(self._file(before, _HISTOGRAMS)),
                    method=method,
                    epoch=epoch,
                    epochs=epochs,
                    seed=run.options.seed,
                    state=state,
                    advance=advance,
                )
            errors: dict[str, float | None] = {"training": None, "held_out": None}
            histograms, held_out = self._judged(network, scheme, method)
            if np.isfinite([state["error"], held_out]).all():
                save_torch({"network": network.state_dict(), **state}, folder / _TUNED)
                save_histograms(histograms, folder / _HISTOGRAMS)
                errors = {"training": state["error"], "held_out": held_out}
            (folder / "error.json").write_text(json.dumps(errors))

        run.stages.run(stage, self._inputs, make, [*self._after, before])
        return stage

    def _judged(self, network: Network, scheme: Scheme, method: str) -> tuple[Histograms, float]:
        """Histograms of the inputs, and the held-out error; infinite where no ranges can be set."""
        try:
            histograms = observe_inputs(network, scheme, self._run.images["calibration"])
        except InputError:  # no finite numbers, of images that had given some before
            return {}, np.inf
        return histograms, self._held_out_error(network, scheme, histograms, method)

    def _held_out_error(
        self, network: Network, scheme: Scheme, histograms: Histograms, method: str
    ) -> float:
        teacher, held_out = self._run.inputs.model, self._run.images["ranking"]
        return held_out_error(network, teacher, scheme, histograms, held_out, method)

    @property
    def _inputs(self) -> dict[str, Any]:
        return {"epochs": self._run.options.qat, "threads": self._run.options.thread_count}

    def _file(self, stage: str, name: str) -> Path:
        return self._run.stages.workspace / stage / name

    def _load(self, network: Network, path: Path) -> dict[str, Any] | None:
        """Give a network the weights that a stage left; returns the rest of its state, if any."""
        state = torch.load(path, weights_only=True)
        network.load_state_dict(state.pop("network"))
        return state or None
