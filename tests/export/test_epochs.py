"""Fine-tuning within a run: held-out images decide whether it is used, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.hard_cases import scale_stage_ends
from cmt.errors import GateError
from cmt.export import epochs, export
from cmt.export.answers import reference_network
from cmt.export.context import Context
from cmt.export.epochs import FineTuning, least
from cmt.export.evaluation import reference_answers
from cmt.export.graph_maker import GraphMaker
from cmt.export.graphs import GRAPHS, chain
from cmt.export.options import ExportOptions
from cmt.export.pipeline import make_plan, start
from cmt.export.unit_sensitivity import Sensitivity
from cmt.measure.parity import require
from cmt.measure.progress import ProgressBars
from cmt.network import CMT
from cmt.quantize import fine_tuning
from cmt.quantize.ranges import METHODS
from cmt.quantize.recipe import EXPLICIT, OPENVINO, TENSOR_CORES

CALIBRATED = [*[1.0] * len(METHODS), 0.9]
"""Errors before any epoch: of equal ones the first method's weights are fitted, and do better."""
EXPORTED = {
    recipe: next(g for g in GRAPHS.values() if g.tuned == recipe) for recipe in (EXPLICIT, OPENVINO)
}
"""The graphs whose networks are fine-tuned."""


def test_every_network_learns_with_the_recipe_that_its_int8_file_has() -> None:
    files = {name: graph.recipe for name, graph in GRAPHS.items() if graph.recipe is not None}
    assert {name: GRAPHS[list(chain(name))[-1]].tuned for name in files} == files
    assert TENSOR_CORES in files.values()


@pytest.fixture
def outlying_weights(
    tiny_network: Callable[..., CMT], save_labelled: Callable[[CMT, Path], None], tmp_path: Path
) -> Path:
    """A channel of what each stage ends with is far above the others; the next layer knows."""
    model = tiny_network("official", 2)
    scale_stage_ends(model, 3000.0)
    save_labelled(model, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


@pytest.fixture
def options(tiny_in_process: None, outlying_weights: Path, photos: Path) -> dict[str, Any]:
    return {
        "variant": "tiny",
        "targets": ("onnxruntime", "openvino"),
        "precisions": ("int8",),
        "weights": str(outlying_weights),
        "calib_data": photos,
        "val_data": photos,
        "tune": False,
        "bench_seconds": 0.05,
        "threads": 1,
        "max_drop": 100.0,
    }


@pytest.fixture
def context(options: dict[str, Any], tmp_path: Path) -> Callable[..., Context]:
    """`context(qat=1)`: a run of two epochs or so whose images are prepared, and nothing else."""

    def make(qat: int) -> Context:
        chosen = ExportOptions(**options, out=tmp_path / "bundle", qat=qat)
        run = start(make_plan(chosen), tmp_path / f"stages {qat}", ProgressBars(False))
        reference_network(run)
        return run

    return make


@pytest.fixture
def graphs(context: Callable[..., Context]) -> Callable[..., GraphMaker]:
    def make(qat: int) -> GraphMaker:
        run = context(qat)
        return GraphMaker(run, reference_answers(run, reference_network(run)))

    return make


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """`judged(errors)`: held-out errors in the order in which they are asked for."""

    def make(errors: list[float]) -> None:
        left = iter(errors)
        monkeypatch.setattr(FineTuning, "_held_out_error", lambda *_: next(left))

    return make


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        ([1.0], 0),
        ([1.0, 0.5, 0.4], 2),
        ([1.0, 0.4, 0.5], 1),
        ([1.0, 1.1, 1.2], 0),
        ([1.0, 1.0], 0),  # nothing gained is nothing changed
        ([1.0, 0.9, None], 1),
        ([1.0, None], 0),
    ],
)
def test_the_epoch_with_the_least_error_is_taken_if_any(
    errors: list[float | None], chosen: int
) -> None:
    assert least(errors) == chosen


@pytest.mark.parametrize("recipe", [EXPLICIT, OPENVINO])
@pytest.mark.parametrize(("after", "used"), [([1.2, 0.5], 2), ([0.8, 0.85], 1), ([0.95, 1.0], 0)])
def test_fine_tuning_that_does_harm_is_not_used(
    context: Callable[..., Context],
    judged: Callable[[list[float]], None],
    monkeypatch: pytest.MonkeyPatch,
    recipe: str,
    after: list[float],
    used: int,
) -> None:
    learn, learned = epochs.train_epoch, []
    monkeypatch.setattr(fine_tuning, "BATCH", 8)
    monkeypatch.setattr(epochs, "train_epoch", lambda *a, **k: learned.append(k) or learn(*a, **k))
    judged([*CALIBRATED, *after])
    tuning = FineTuning(context(qat=2))
    graph = EXPORTED[recipe]
    assert tuning.stage(graph) == f"tuned/{recipe}-{used}"
    assert [entry["epoch"] for entry in learned] == [0, 1]
    # It learned with the ranges that its file will have, or the file chooses its own.
    assert tuning.method(recipe) == (METHODS[0] if used else None)
    assert {entry["method"] for entry in learned} == {METHODS[0]}
    rows = tuning.report()["schemes"][recipe]
    assert (rows["chosen"], rows["held_out"]) == (used, [0.9, *after])
    given = epochs.make_network(tuning._context, graph).state_dict()
    now = tuning.tuned(graph).state_dict()
    same = all(torch.equal(now[name], value) for name, value in given.items())
    assert same == (not used)


@pytest.mark.parametrize("layer", ["head.classifier", "stages.0.blocks.0.ffn.expand"])
def test_an_epoch_that_diverges_is_the_last_and_is_not_used(
    layer: str, context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = epochs.train_epoch

    def learn_and_diverge(network: Any, *args: Any, **kwargs: Any) -> Any:
        state = learn(network, *args, **kwargs)
        with torch.no_grad():
            network.get_submodule(layer).weight.mul_(torch.nan)
        return state

    monkeypatch.setattr(epochs, "train_epoch", learn_and_diverge)
    tuning = FineTuning(context(qat=2))
    tuning.stage(EXPORTED[EXPLICIT])
    recipe = tuning.report()["schemes"][EXPLICIT]
    assert (recipe["chosen"], recipe["training"]) == (0, [None])
    assert recipe["held_out"][1:] == [None]


def test_fitted_activations_stay_in_a_network_that_learned_with_them(
    graphs: Callable[..., GraphMaker], judged: Callable[[list[float]], None]
) -> None:
    for qat in (0, 1):
        judged([*CALIBRATED, 0.5])
        maker = graphs(qat)
        rows = Sensitivity(maker.context, maker).units("fitted-qdq")
        assert any(row["unit"].startswith("stand-ins") for row in rows) == (not qat)


def test_the_ranges_of_a_fine_tuned_file_are_those_that_were_learned_with(
    graphs: Callable[..., GraphMaker], judged: Callable[[list[float]], None]
) -> None:
    judged([*CALIBRATED, 0.5])
    choice = graphs(qat=1).choice("qdq")
    assert choice.row is not None
    assert [row["method"] for row in choice.row["methods"]] == [METHODS[0]]
    assert choice.rounded is None  # on their grid already


def test_a_fine_tuned_graph_is_compared_with_the_fine_tuned_network(
    graphs: Callable[..., GraphMaker],
    judged: Callable[[list[float]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is learned for INT8 may take the float network anywhere: only INT8 must come back."""
    learn = epochs.train_epoch

    def learn_and_turn(network: Any, *args: Any, **kwargs: Any) -> Any:
        state = learn(network, *args, **kwargs)
        with torch.no_grad():
            network.head.classifier.weight.mul_(-1)
            network.head.classifier.bias.mul_(-1)
        return state

    monkeypatch.setattr(epochs, "train_epoch", learn_and_turn)
    judged([*CALIBRATED, 0.5])
    maker = graphs(qat=1)
    maker.graph("qdq")
    rows = maker.parity([("qdq", frozenset())])
    assert rows["equalised-simplified"]["passed"]
    with pytest.raises(GateError, match="parity failed at 'qdq'"):
        require(rows["qdq"])


def test_an_export_fine_tunes_and_says_what_became_of_it(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fine_tuning, "LEARNING_RATE", 1.0)
    monkeypatch.setattr(fine_tuning, "BATCH", 2)
    options |= {"targets": ("onnxruntime",), "out": tmp_path / "bundle", "qat": 1}
    report = export(**options).report
    recipe = report["fine_tuning"]["schemes"][EXPLICIT]
    assert recipe["chosen"] == int(np.argmin(recipe["held_out"])) == 0
    assert report["fine_tuning"]["epochs"] == 1
    assert "was not used" in (tmp_path / "bundle" / "report.md").read_text()
