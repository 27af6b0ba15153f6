"""An export called from Python: what a program may give for an option."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmt.errors import InputError
from cmt.export.call import options_from
from cmt.export.inputs import resolve
from cmt.export.options import ExportOptions
from cmt.network import build

ROOT = Path(__file__).parents[2]


def test_texts_and_single_values_stand_for_paths_and_several() -> None:
    given = {
        "variant": "ti",
        "targets": "openvino",
        "precisions": "int8",
        "img_size": 160,
        "calib_data": "photos",
        "val_data": Path("val"),
        "gpu_archs": "sm86",
        "sign": "key.pem",
        "out": "x",
        "batch": np.int64(2),
        "weights": None,
    }
    assert options_from(None, given) == ExportOptions(
        variant="ti",
        targets=("openvino",),
        precisions=("int8",),
        img_size=(160, 160),
        calib_data=Path("photos"),
        val_data=Path("val"),
        gpu_archs=("sm86",),
        sign=(Path("key.pem"),),
        out=Path("x"),
        batch=2,
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"targets": "openvino", "variant": "ti", "int8": True}, "no option 'int8': choose from"),
        ({"targets": "openvino"}, "export needs variant"),
        ({"variant": "ti"}, "export needs targets"),
        ({"targets": "openvino", "variant": "ti", "batch": "2"}, "--batch must be a whole number"),
        ({"targets": "openvino", "variant": "ti", "max_drop": "1"}, "--max-drop must be a number"),
        ({"targets": "openvino", "variant": "ti", "force": "no"}, "--force must be True or False"),
    ],
)
def test_what_will_not_do_is_refused_in_a_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        options_from(None, given)


def test_a_network_in_memory_is_exported_as_it_is(photos: Path) -> None:
    model = build("ti", num_classes=2, img_size=32)
    model.metadata = {"labels": '["blue", "red"]'}
    options = options_from(model, {"targets": "openvino", "val_data": photos})
    assert options.variant == "ti"
    inputs = resolve(options, needs_calibration=False)
    assert inputs.weights_source == "the network in memory"
    assert len(inputs.weights_sha256 or "") == 64
    assert inputs.class_names == ("blue", "red")
    assert not any("random" in warning for warning in inputs.warnings)
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(inputs.model(image), model.eval()(image))
    before = options.identity
    with torch.no_grad():
        model.head.classifier.bias += 1
    assert options.identity == before
    assert torch.equal(inputs.model.head.classifier.bias + 1, model.head.classifier.bias)
    with pytest.raises(InputError, match="give one of the two"):
        options_from(model, {"targets": "openvino", "weights": "x"})


def test_what_state_dict_saved_is_exported_with_its_labels(photos: Path, tmp_path: Path) -> None:
    model = build("ti", num_classes=2, img_size=32)
    model.metadata = {"labels": '["blue", "red"]'}
    saved = tmp_path / "f.pt"
    for one in (model, torch.nn.DataParallel(model), torch.compile(model)):
        torch.save(one.state_dict(), saved)
        inputs = resolve(ExportOptions("ti", ("openvino",), weights=saved, val_data=photos), False)
        assert inputs.class_names == ("blue", "red")
        again, image = inputs.model, torch.rand(1, 3, 32, 32)
        assert torch.equal(again(image), model.eval()(image))


def test_the_types_of_arguments_are_made_from_the_options() -> None:
    command = [sys.executable, ROOT / "docs" / "argument_types.py"]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "export" / "arguments.py").read_text() == made
