"""Fine-tuning within a run: each epoch a stage, so that an interrupted run goes on after it."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cmt.errors import InputError
from cmt.export.answers import REFERENCE
from cmt.export.context import Context
from cmt.export.graphs import Graph
from cmt.export.images import CALIBRATION, FINE_TUNING, HELD_OUT
from cmt.export.networks import Network, make_network
from cmt.quantize.choice import choose
from cmt.quantize.fine_tuning import (
    EpochState,
    Histograms,
    fit_weights,
    held_out_error,
    observe_inputs,
    train_epoch,
)
from cmt.quantize.ranges import METHODS, load_histograms, save_histograms
from cmt.quantize.recipe import RECIPES, Recipe
from cmt.report.rows import Scheme, Tuning
from cmt.weight_files import save_torch

_START, _TUNED = "start.pt", "state.pt"
"""In stages: what the first epoch starts from, and what an epoch left."""
_HISTOGRAMS = "histograms.npz"
"""In stages: of the inputs, to set the next epoch's ranges."""


def least(errors: Sequence[float | None]) -> int:
    """The place of the least error, the first of equals; an epoch that diverged has None."""
    return int(np.argmin([np.inf if error is None else error for error in errors]))


class FineTuning:
    """The fine-tuned networks of a run, which has calibration images."""

    def __init__(self, context: Context) -> None:
        self._context, images = context, context.images
        name = FINE_TUNING if FINE_TUNING in images.sets else CALIBRATION
        # What judges the epochs teaches nothing, where there is enough to hold out.
        judges = images.held_out.digests if images.held_out_count else []
        self.images = images.sets[name].without(judges)
        # Activations are fitted on calibration images, whatever the rest learns on.
        sets = dict.fromkeys([CALIBRATION, HELD_OUT, name])
        self._after = [REFERENCE, *(f"images/{images}" for images in sets)]
        self.recipes: dict[str, Scheme] = {}
        """By recipe: each epoch's `training` error; the error on held-out images `held_out`, first
        by calibration alone; after how many epochs the network was `chosen`; and the `method` of
        choosing ranges that it learned with, the best before any epoch. Errors are mean square
        ones, relative to the teacher's outputs; None of an epoch that diverged, the last then."""

    def report(self) -> Tuning:
        """The report's `fine_tuning`."""
        return {
            "epochs": self._context.options.qat,
            "images": len(self.images),
            "source": self.images.description,
            "sha256": self.images.sha256,
            "schemes": self.recipes,
        }

    def stage(self, graph: Graph) -> str:
        """Fine-tune the network of a graph; returns the stage of the network with the least error.

        That may be the first one, which has nothing fine-tuned: epochs can also do harm.
        """
        recipe = RECIPES[str(graph.tuned)]
        stages = [self._calibrated(graph, recipe)]
        method = json.loads(self._file(stages[0], "error.json").read_text())["method"]
        for epoch in range(self._context.options.qat):
            stages.append(self._epoch(graph, recipe, method, epoch, stages[-1]))
            if not self._file(stages[-1], _TUNED).exists():
                break
        errors = [json.loads(self._file(stage, "error.json").read_text()) for stage in stages]
        held_out = [error["held_out"] for error in errors]
        chosen = least(held_out)
        self.recipes[recipe.name] = {
            "training": [error["training"] for error in errors[1:]],
            "held_out": held_out,
            "chosen": chosen,
            "method": method,
        }
        return stages[chosen]

    def method(self, recipe: str) -> str | None:
        """How the ranges are chosen that a recipe's network learned with; None where it did not.

        To be asked after `stage`.
        """
        found = self.recipes[recipe]
        return found["method"] if found["chosen"] else None

    def tuned(self, graph: Graph) -> Network:
        """The network that `stage` chose."""
        network = make_network(self._context, graph)
        path = self._file(self.stage(graph), _TUNED)
        if path.exists():
            self._load(network, path)
        return network

    def _calibrated(self, graph: Graph, recipe: Recipe) -> str:
        """The stage with the error of calibration alone, and with what the first epoch starts from.

        Both are chosen as in a run without fine-tuning, and have to be beaten.
        """
        context, stage = self._context, f"tuned/{recipe.name}-0"

        def make(folder: Path) -> None:
            network = make_network(self._context, graph)
            calibration = context.images.setting_ranges
            title = f"measuring {recipe.name} INT8 before fine-tuning"
            with context.progress.task(title, len(METHODS)) as advance:
                histograms = observe_inputs(network, recipe, calibration)

                def judge(method: str, fitted: Network | None) -> float:
                    judged = network if fitted is None else fitted
                    advance(fitted is None)
                    return self._held_out_error(judged, recipe, histograms, method)

                def fit(method: str) -> Network:
                    own = copy.deepcopy(network)
                    with context.progress.step(f"fitting weights for {recipe.name} INT8"):
                        fit_weights(own, recipe, calibration, histograms, method)
                    return own

                choice = choose(METHODS, judge, lambda chosen: {m: fit(m) for m in chosen})
            start = network if choice.fitted is None else choice.fitted
            save_torch({"network": start.state_dict()}, folder / _START)
            save_histograms(histograms, folder / _HISTOGRAMS)
            content = {"held_out": choice.error, "method": choice.method}
            (folder / "error.json").write_text(json.dumps(content))

        context.stages.run(stage, self._inputs, make, self._after)
        return stage

    def _epoch(self, graph: Graph, recipe: Recipe, method: str, epoch: int, before: str) -> str:
        """The stage of an epoch, counted from 0, on what the stage `before` left.

        An epoch that diverged leaves no network.
        """
        context, stage = self._context, f"tuned/{recipe.name}-{epoch + 1}"
        epochs = context.options.qat

        def make(folder: Path) -> None:
            network = make_network(self._context, graph)
            state = self._load(network, self._file(before, _TUNED if epoch else _START))
            title = f"fine-tuning for {recipe.name} INT8, epoch {epoch + 1} of {epochs}"
            with context.progress.task(title, len(self.images)) as advance:
                state = train_epoch(
                    network,
                    context.inputs.model,
                    recipe,
                    self.images,
                    histograms=load_histograms(self._file(before, _HISTOGRAMS)),
                    method=method,
                    epoch=epoch,
                    epochs=epochs,
                    seed=context.options.seed,
                    state=state,
                    advance=advance,
                )
            errors: dict[str, float | None] = {"training": None, "held_out": None}
            histograms, held_out = self._judged(network, recipe, method)
            if np.isfinite([state["error"], held_out]).all():
                save_torch({"network": network.state_dict(), **state}, folder / _TUNED)
                save_histograms(histograms, folder / _HISTOGRAMS)
                errors = {"training": state["error"], "held_out": held_out}
            (folder / "error.json").write_text(json.dumps(errors))

        context.stages.run(stage, self._inputs, make, [*self._after, before])
        return stage

    def _judged(self, network: Network, recipe: Recipe, method: str) -> tuple[Histograms, float]:
        """Histograms of the inputs, and the held-out error; infinite where no ranges can be set."""
        try:
            histograms = observe_inputs(network, recipe, self._context.images.setting_ranges)
        except InputError:  # no finite numbers, of images that had given some before
            return {}, np.inf
        return histograms, self._held_out_error(network, recipe, histograms, method)

    def _held_out_error(
        self, network: Network, recipe: Recipe, histograms: Histograms, method: str
    ) -> float:
        teacher, held_out = self._context.inputs.model, self._context.images.held_out
        return held_out_error(network, teacher, recipe, histograms, held_out, method)

    @property
    def _inputs(self) -> dict[str, int]:
        return {"epochs": self._context.options.qat, "threads": self._context.threads}

    def _file(self, stage: str, name: str) -> Path:
        return self._context.stages.workspace / stage / name

    def _load(self, network: Network, path: Path) -> EpochState | None:
        """Give a network the weights that a stage left; returns the rest of its state, if any."""
        state = torch.load(path, weights_only=True)
        network.load_state_dict(state.pop("network"))
        return state or None
