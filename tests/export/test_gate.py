"""Files that exceed --max-drop get units back in float, in both recipes of INT8.

The network is small, tells red pictures from blue ones, and is made hostile to INT8: some channels
are a thousand times larger than their neighbours and the next layer takes that back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.hard_cases import scale_stage_ends
from cmt.errors import GateError
from cmt.export import calibration, file_maker, gate
from cmt.export import export as run_export
from cmt.export.calibration import FITTED
from cmt.export.pipeline import Bundle
from cmt.layouts import to_public_layout
from cmt.network import CMT, ConvHead
from cmt.quantize import activation
from cmt.quantize.activation import fit_activations
from cmt.quantize.sensitivity import worst_first
from cmt.rewrite import InferenceCMT
from cmt.targets.registry import TARGETS
from cmt.variants import VARIANTS

SCALE = 1000.0


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures each of two classes."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, channel in (("blue", 2), ("red", 0)):
        (root / name).mkdir()
        for i in range(40):
            pixels = rng.integers(0, 120, (64, 64, 3), np.uint8)
            # None is so near to both classes that any rounding would decide.
            pixels[..., channel] += 10 + 2 * i
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def learn(model: CMT, pictures: Path) -> None:
    """Let the classifier tell the two folders apart: logits of about 16 and 24."""
    assert isinstance(model.head, ConvHead)
    features: list[torch.Tensor] = []
    hook = model.head.classifier.register_forward_pre_hook(
        lambda _, given: features.append(given[0])
    )
    means = []
    for name in ("blue", "red"):
        images = [np.asarray(Image.open(p)) for p in sorted((pictures / name).iterdir())]
        x = torch.tensor(np.stack(images)).permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
        with torch.no_grad():
            model((x - mean) / std)
        means.append(features[-1].mean(0))
    hook.remove()
    direction = means[1] - means[0]
    weight = 4 * direction / direction.square().sum()
    with torch.no_grad():
        model.head.classifier.weight.copy_(torch.stack([-weight, weight]))
        shift = weight @ (means[0] + means[1]) / 2
        # Far from zero, so that logits keep their direction where answers change.
        model.head.classifier.bias.copy_(20 + torch.stack([shift, -shift]))


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def lean_on_last_block(model: CMT) -> None:
    """Let attention and IRFFN of the last block outweigh what they are added to."""
    with torch.no_grad():
        block = model.stages[3].blocks[0]
        block.attention.proj.weight *= 300
        block.ffn.project.weight *= 100


def make_hostile(model: CMT) -> None:
    """The same function; a LayerNorm's, an IRFFN's and a value's channel far above the others."""
    with torch.no_grad():
        block = model.stages[3].blocks[0]
        block.norm2.weight[3] *= SCALE
        block.norm2.bias[3] *= SCALE
        block.ffn.expand.weight[:, 3] /= SCALE
        block.ffn.depthwise_norm.weight[5] *= SCALE
        block.ffn.depthwise_norm.bias[5] *= SCALE
        block.ffn.project.weight[:, 5] /= SCALE
        block.attention.v.weight[2] *= SCALE
        block.attention.v.bias[2] *= SCALE
        block.attention.proj.weight[:, 2] /= SCALE


@pytest.fixture(scope="module")
def hostile(
    tiny_network: Callable[..., CMT], pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    model = tiny_network("official", 2)
    lean_on_last_block(model)
    learn(model, pictures)
    before = model(torch.zeros(1, 3, 64, 64))
    make_hostile(model)
    torch.testing.assert_close(model(torch.zeros(1, 3, 64, 64)), before, atol=1e-3, rtol=1e-3)
    path = tmp_path_factory.mktemp("hostile") / "tiny.safetensors"
    save(model, path)
    return path


def save(model: CMT, path: Path) -> None:
    state = {key: value.contiguous() for key, value in to_public_layout(model).items()}
    save_file(state, path, {"labels": json.dumps(["blue", "red"])})


@pytest.fixture
def hostile_stage_ends(
    tiny_network: Callable[..., CMT], pictures: Path, tmp_path: Path
) -> dict[str, Any]:
    """Options of an export of a network that no scaling of channels mends."""
    model = tiny_network("official", 2)
    scale_stage_ends(model, SCALE)
    learn(model, pictures)
    save(model, tmp_path / "tiny.safetensors")
    return {"weights": str(tmp_path / "tiny.safetensors")}


@pytest.fixture
def spoilt_stand_ins(
    tiny_network: Callable[..., CMT],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """Options of an export whose stand-ins for GELU are no good, in a network with small logits."""
    model = tiny_network("official", 2)
    lean_on_last_block(model)
    learn(model, pictures)
    with torch.no_grad():
        model.head.classifier.bias -= 20
    save(model, tmp_path / "tiny.safetensors")

    def fit_badly(network: InferenceCMT, batches: Iterable[torch.Tensor]) -> None:
        fit_activations(network, batches)
        with torch.no_grad():
            network.stages[3].blocks[0].ffn.project.weight *= -1

    monkeypatch.setattr(activation, "fit_activations", fit_badly)

    def fitted_first(row: dict[str, Any]) -> float:
        # Whether fitted weights are best is chance on so few pictures.
        return np.inf if FITTED in row.get("method", "") else worst_first(row)

    monkeypatch.setattr(calibration, "worst_first", fitted_first)
    return {"weights": str(tmp_path / "tiny.safetensors")}


@pytest.fixture
def export_tiny(
    hostile: Path,
    pictures: Path,
    tiny_in_process: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Bundle]:
    monkeypatch.setattr(file_maker, "SLOWDOWN_SECONDS", 0.05)
    monkeypatch.setattr(gate, "TIMED_UNITS", 2)

    def run(*targets: str, precision: str = "int8", **options: Any) -> Bundle:
        return run_export(
            variant="tiny",
            targets=targets,
            precisions=(precision,),
            val_data=pictures,
            tune=False,
            bench_seconds=0.05,
            threads=1,
            out=tmp_path / "bundle",
            **{"weights": str(hostile), "calib_data": pictures, **options},
        )

    return run


def test_a_hostile_network_keeps_its_accuracy_with_few_layers_in_float(
    export_tiny: Callable[..., Bundle], hostile_stage_ends: dict[str, Any]
) -> None:
    assert "tiny" in VARIANTS
    bundle = export_tiny("onnxruntime", max_drop=1.0, sensitivity=True, **hostile_stage_ends)
    assert bundle.failures == []
    assert any("60 calibration images are few" in line for line in bundle.report["warnings"])
    assert bundle.report["sensitivity"][0]["unit"].startswith(("stage entry", "head features"))
    assert {row["recipe"] for row in bundle.report["sensitivity"]} == {"explicit"}
    assert [len(row["by_layer"]) for row in bundle.report["sensitivity"]] == [
        row["layers"] for row in bundle.report["sensitivity"]
    ]
    (unit,) = (r for r in bundle.report["sensitivity"] if r["unit"] == "ffn project, stage 4")
    assert unit["by_layer"][0]["layer"] == "stages.3.blocks.0.ffn.project"
    assert unit["by_layer"][0]["sqnr_db"] == unit["sqnr_db"]  # its only layer
    (entry,) = bundle.report["fallbacks"]
    assert entry["met"]
    assert entry["points"][0]["float"] == []
    assert entry["points"][0]["drop_pp"] > 1
    (chosen,) = (point for point in entry["points"] if point["chosen"])
    assert len(chosen["float"]) > 0
    assert chosen["float_layers"] < entry["layers"] / 4
    (row,) = (r for r in bundle.report["results"] if r["precision"] == "int8")
    assert row["accuracy"]["drop_pp"] == chosen["drop_pp"] <= 1


def test_what_cannot_be_met_in_time_fails_keeps_the_best_and_lists_what_was_tried(
    export_tiny: Callable[..., Bundle],
) -> None:
    bundle = export_tiny("openvino", max_drop=-50.0, gate_minutes=0.001)
    assert any("int8" in failure for failure in bundle.failures)
    found = {entry["precision"]: entry for entry in bundle.report["fallbacks"]}
    assert found["int8"]["out_of_time"]
    for entry in found.values():
        assert not entry["met"]
        assert [len(point["float"]) for point in entry["points"]] == [0, 1]
        drops = [p["drop_pp"] for p in entry["points"] if p["drop_pp"] is not None]
        (chosen,) = (point for point in entry["points"] if point["chosen"])
        assert chosen["drop_pp"] == min(drops)
    assert "Back to float" in (bundle.path / "report.md").read_text()


@pytest.mark.usefixtures("exact_int8_sums")
def test_a_file_is_held_to_its_own_graph_where_stand_ins_went_back(
    export_tiny: Callable[..., Bundle], spoilt_stand_ins: dict[str, Any]
) -> None:
    bundle = export_tiny("openvino", max_drop=1.0, **spoilt_stand_ins)
    assert bundle.failures == []
    (entry,) = bundle.report["fallbacks"]
    (chosen,) = (point for point in entry["points"] if point["chosen"])
    assert chosen["float"] == ["stand-ins, stage 4"]
    assert entry["points"][0]["drop_pp"] > 1 >= chosen["drop_pp"]
    stages = [row["stage"] for row in bundle.report["parity"]]
    assert not {"fitted", "fitted-simplified"} & set(stages)
    assert any(stage.startswith("fitted-qdq with units in float") for stage in stages)
    # Of that stage, weights were fitted to the stand-ins, which are not those of its GELUs.
    assert bundle.report["calibration"][0]["chosen"] == "mse, weights fitted"


def test_a_failed_arrow_says_what_speaks_against_the_calibration_images(
    export_tiny: Callable[..., Bundle], spoilt_stand_ins: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "grey").mkdir()
    for level in range(0, 256, 4):
        Image.new("RGB", (64, 64), (level,) * 3).save(tmp_path / "grey" / f"{level}.png")
    with pytest.raises(GateError, match=r"parity failed at 'fitted'.*unlike the validation images"):
        export_tiny("openvino", gate_minutes=0.0, calib_data=tmp_path / "grey", **spoilt_stand_ins)


@pytest.mark.skipif(TARGETS["tensorrt"].missing() is not None, reason="TensorRT is not installed")
def test_fp16_falls_back_to_islands_of_fp32(export_tiny: Callable[..., Bundle]) -> None:
    bundle = export_tiny(
        "tensorrt", "onnxruntime", precision="fp16", max_drop=-50.0, gate_minutes=0.001
    )
    (entry,) = bundle.report["fallbacks"]
    assert (entry["target"], entry["precision"]) == ("tensorrt", "fp16")
    assert entry["cost"].startswith("share of multiply-adds: ")
    assert [point["slowdown"] for point in entry["points"]] == [None, None]
    tried = entry["points"][1]
    assert len(tried["float"]) == 1
    assert tried["bytes"] > entry["points"][0]["bytes"]
