"""--dry-run: what it says is so, and nothing is written."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from cmt.checkpoints import load_model
from cmt.errors import InputError
from cmt.export import preflight
from cmt.export.options import ExportOptions
from cmt.network import count_macs
from cmt.quantize.recipe import ROLES
from cmt.targets import registry
from cmt.targets.registry import TARGETS
from cmt.variants import Variant


@pytest.fixture
def options(tiny: Variant, photos: Path, tiny_weights: Path, tmp_path: Path) -> ExportOptions:
    return ExportOptions(
        variant=tiny.name,
        targets=tuple(name for name, target in TARGETS.items() if target.missing() is None),
        precisions=("fp16", "int8"),
        weights=str(tiny_weights),
        calib_data=photos,
        val_data=photos,
        out=tmp_path / "nowhere" / "bundle",
    )


def test_layers_add_up_to_the_networks_products_but_attentions() -> None:
    model = load_model("ti", img_size=64)
    layers = preflight.weighted_layers(model)
    total = count_macs(model, model.img_size)
    assert 0.9 * total < sum(layer.macs for layer in layers) < total
    (entry,) = (layer for layer in layers if layer.path == "stages.3.entry.conv")
    assert (entry.channels, entry.depthwise) == ((184, 368), False)
    assert entry.macs == 2 * 2 * 184 * 368 * 4


def test_the_documented_dry_run_gives_the_recipes_reasons() -> None:
    text = (Path(__file__).parents[2] / "docs" / "notebook" / "tensorrt.md").read_text(
        encoding="utf-8"
    )
    said = dict(re.findall(r"^- float: (.+?) \(\d+, .*?\): (.+)$", text, re.MULTILINE))
    assert said == {role.name: role.reason for role in ROLES if role.name in said}
    assert "reduction" in said


def test_a_dry_run_says_what_stays_float_and_why_and_writes_nothing(
    options: ExportOptions, tmp_path: Path
) -> None:
    lines = preflight.preflight(options)
    assert list(tmp_path.iterdir()) == []
    text = "\n".join(lines)
    for target in options.targets:
        assert f"{target}/int8: the parser reads the whole graph" in text
    assert "float: lpu (5, " in text
    assert "depthwise, reads the residual stream" in text
    if "tensorrt" in options.targets:
        assert "multiples of 16; not 8\n" in text
        assert re.search(r"predicted on an NVIDIA A100 40GB, not measured: \d\.\d\d ms; ", text)
        assert re.search(r"INT8 moves \+\d+% beside FP16 by the builder's record: ship FP16", text)


def test_a_dry_run_fine_tunes_nothing_and_looks_at_where_the_bundle_would_go(
    options: ExportOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("fine-tuning")

    monkeypatch.setattr("cmt.export.epochs.train_epoch", refuse)
    few = dataclasses.replace(options, targets=("onnxruntime",), precisions=("int8",), qat=1)
    assert "onnxruntime/int8: the parser reads the whole graph" in preflight.preflight(few)
    (few.bundle / "something").mkdir(parents=True)
    with pytest.raises(InputError, match="exists: choose another --out"):
        preflight.preflight(few)


def test_an_operator_that_a_target_lacks_is_named(
    options: ExportOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = dataclasses.replace(TARGETS["openvino"], unsupported=lambda graph: ["Wobble w1: no"])
    monkeypatch.setitem(registry.TARGETS, "openvino", lacking)
    few = dataclasses.replace(options, targets=("openvino",), precisions=())
    with pytest.raises(InputError, match="openvino/fp32 cannot be built: Wobble w1: no"):
        preflight.preflight(few)
    assert list(tmp_path.iterdir()) == []
