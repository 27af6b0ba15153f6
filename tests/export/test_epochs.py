"""Fine-tuning within an export: held-out images decide whether it is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.hard_cases import scale_stage_ends
from cmt.errors import GateError
from cmt.export import epochs as tuning
from cmt.export import export
from cmt.export.calibration import FITTED
from cmt.network import CMT
from cmt.quantize import fine_tuning
from cmt.quantize.ranges import METHODS, MSE
from cmt.quantize.sensitivity import worst_first


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
        "targets": ("onnxruntime",),
        "precisions": ("int8",),
        "weights": str(outlying_weights),
        "calib_data": photos,
        "val_data": photos,
        "bench_seconds": 0.05,
        "threads": 1,
        "max_drop": 100.0,
    }


@pytest.mark.parametrize(("rate", "used"), [(2e-5, 1), (1.0, 0)])
def test_fine_tuning_that_does_harm_is_not_used(
    rate: float,
    used: int,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fine_tuning, "LEARNING_RATE", rate)
    monkeypatch.setattr(fine_tuning, "BATCH", 2)
    report = export(**options, out=tmp_path / "tuned", qat=1).report
    scheme = report["fine_tuning"]["schemes"]["explicit"]
    assert scheme["chosen"] == used, scheme
    assert (scheme["held_out"][1] < scheme["held_out"][0]) == bool(used)
    # The file has the ranges that the network learned with, or those of a run without.
    (choice,) = report["calibration"]
    tried = [row["method"] for row in choice["methods"]]
    best = max(choice["methods"][: len(METHODS)], key=worst_first)["method"]
    # Learning began with fitted weights, and ended on their grid or another: not fitted again.
    fitted = [method + FITTED for method in dict.fromkeys([MSE, best])]
    assert tried == ([scheme["method"]] if used else [*METHODS, *fitted])
    export(**options, out=tmp_path / "plain")
    manifests = [
        json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("tuned", "plain")
    ]
    tuned, plain = (
        {a["precision"]: a["sha256"] for a in manifest["artefacts"] if "golden" in a}
        for manifest in manifests
    )
    assert tuned["fp32"] == plain["fp32"]
    assert (tuned["int8"] == plain["int8"]) == (not used)


@pytest.mark.parametrize("layer", ["head.classifier", "stages.0.blocks.0.ffn.expand"])
def test_an_epoch_that_diverges_is_the_last_and_is_not_used(
    layer: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = tuning.train_epoch

    def learn_and_diverge(network: Any, *args: Any, **kwargs: Any) -> Any:
        state = learn(network, *args, **kwargs)
        with torch.no_grad():
            network.get_submodule(layer).weight.mul_(torch.nan)
        return state

    monkeypatch.setattr(tuning, "train_epoch", learn_and_diverge)
    report = export(**options, out=tmp_path / "bundle", qat=2).report
    scheme = report["fine_tuning"]["schemes"]["explicit"]
    assert scheme["chosen"] == 0
    assert scheme["training"] == [None]
    assert scheme["held_out"][1:] == [None]
    assert "was not used" in (tmp_path / "bundle" / "report.md").read_text()


CALIBRATED = [*[1.0] * len(METHODS), 0.9]
"""Errors before any epoch: of equal ones the first method's weights are fitted, and do better."""


def test_stand_ins_stay_in_a_network_that_learned_with_them(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options |= {"targets": ("openvino",), "sensitivity": True}
    for qat in (0, 1):
        errors = iter(CALIBRATED)
        monkeypatch.setattr(
            tuning.FineTuning, "_held_out_error", lambda *_, errors=errors: next(errors, 0.5)
        )
        report = export(**options, qat=qat, out=tmp_path / str(qat)).report
        units = {row["unit"] for row in report["sensitivity"]}
        assert any(unit.startswith("stand-ins") for unit in units) == (not qat)
    assert report["fine_tuning"]["schemes"]["openvino"]["chosen"] == 1


def test_a_fine_tuned_graph_is_compared_with_the_fine_tuned_network(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is learned for INT8 may take the float network anywhere: only INT8 must come back."""
    learn = tuning.train_epoch

    def learn_and_turn(network: Any, *args: Any, **kwargs: Any) -> Any:
        state = learn(network, *args, **kwargs)
        with torch.no_grad():
            network.head.classifier.weight.mul_(-1)
            network.head.classifier.bias.mul_(-1)
        return state

    monkeypatch.setattr(tuning, "train_epoch", learn_and_turn)
    monkeypatch.setattr(tuning.FineTuning, "_held_out_error", lambda *_: next(errors))
    errors = iter([*CALIBRATED, 0.5])
    with pytest.raises(GateError, match="parity failed at 'qdq'"):
        export(**options, qat=1, gate_minutes=0.0, out=tmp_path / "bundle")
