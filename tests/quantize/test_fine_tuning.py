"""Fine-tuning rounds what the recipe rounds, learns, leaves BatchNorm alone, and can be stopped."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from whole_recipe import quantize_onnx

from cmt import rewrite_for_inference
from cmt.calib_data.prepared import PreparedImages
from cmt.network import CMT
from cmt.quantize import fine_tuning
from cmt.quantize.fine_tuning import fit_weights, int8_layers, observe_inputs, rounded, train_epoch
from cmt.quantize.qdq import find_layers
from cmt.quantize.ranges import MSE
from cmt.quantize.recipe import EXPLICIT, OPENVINO, RECIPES, TENSOR_CORES, Recipe, role_of
from cmt.tensor_cores import fit_tensor_cores


@pytest.fixture
def images(noise: PreparedImages, monkeypatch: pytest.MonkeyPatch) -> PreparedImages:
    """Noise, in batches of two."""
    monkeypatch.setattr(fine_tuning, "BATCH", 2)
    return noise


def outlying(network: CMT) -> CMT:
    """The same function with a channel behind a normalisation far larger than the others."""
    for stage in network.stages:
        for block in stage.blocks:  # type: ignore[union-attr]
            with torch.no_grad():
                block.norm2.weight[0] *= 300
                block.norm2.bias[0] *= 300
                block.ffn.expand.weight[:, 0] /= 300
    return network


def epoch(network: CMT, teacher: CMT, images: PreparedImages, number: int, state: Any) -> Any:
    recipe = RECIPES[EXPLICIT]
    return train_epoch(
        network,
        teacher,
        recipe,
        images,
        histograms=observe_inputs(network, recipe, images),
        method=MSE,
        epoch=number,
        epochs=2,
        seed=0,
        state=state,
        advance=lambda _: None,
    )


def answers(network: CMT, images: PreparedImages) -> np.ndarray:
    with torch.no_grad():
        outputs = [network(torch.from_numpy(batch)) for batch in images.batches(2)]
    return torch.cat(outputs).numpy()  # type: ignore[arg-type]


class OneRole(Recipe):
    """A recipe for the layers of one role alone.

    With all of them, the first value that torch and ONNX Runtime round to different sides makes
    everything behind it another sample of the same noise.
    """

    def is_int8(self, parameters: Iterable[str], depthwise: bool) -> bool:
        names = list(parameters)
        return role_of(names).name == self.name and RECIPES[EXPLICIT].is_int8(names, depthwise)


@pytest.mark.parametrize("role", ["attention output", "ffn project", "head features"])
def test_rounds_as_the_int8_file_does(
    tiny_network: Callable[[str], CMT],
    float_graph: Callable[[str], Path],
    images: PreparedImages,
    role: str,
) -> None:
    recipe = OneRole(role, asymmetric=False, at_source=False, bf16=False)
    network = tiny_network("official")
    batches = list(images.batches(2))
    quantised = quantize_onnx(onnx.load(float_graph("official")), batches, recipe)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(quantised.SerializeToString(), options)
    file = np.concatenate([session.run(None, {"input": batch})[0] for batch in batches])
    exact = answers(network, images)
    with rounded(network, recipe, observe_inputs(network, recipe, images)):
        ours = answers(network, images)
    assert np.abs(ours - file).mean() < 0.1 * np.abs(file - exact).mean()
    np.testing.assert_array_equal(answers(network, images), exact)


def test_rounds_the_rewritten_network_too(
    tiny_network: Callable[[str], CMT], images: PreparedImages
) -> None:
    network: Any = rewrite_for_inference(tiny_network("official"))
    exact = answers(network, images)
    with rounded(network, RECIPES[OPENVINO], observe_inputs(network, RECIPES[OPENVINO], images)):
        error = np.abs(answers(network, images) - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < 0.1


def test_rounds_for_tensor_cores_what_their_int8_file_has_in_int8(
    tiny_network: Callable[[str], CMT], tiles_graph: Callable[[str], Path], images: PreparedImages
) -> None:
    recipe = RECIPES[TENSOR_CORES]
    network: Any = fit_tensor_cores(
        tiny_network("official"), lambda path: recipe.is_int8([f"{path}.weight"], depthwise=False)
    )
    file = find_layers(onnx.load(tiles_graph("official")).graph, recipe)
    assert {layer.name for layer in file} == set(int8_layers(network, recipe))
    exact = answers(network, images)
    with rounded(network, recipe, observe_inputs(network, recipe, images)):
        error = np.abs(answers(network, images) - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < 0.1


def test_learns_to_answer_as_before_with_batchnorm_frozen(
    tiny_network: Callable[[str], CMT], images: PreparedImages
) -> None:
    teacher = tiny_network("official")
    network = outlying(copy.deepcopy(teacher))
    before = copy.deepcopy(network.state_dict())

    def error() -> float:
        with rounded(
            network, RECIPES[EXPLICIT], observe_inputs(network, RECIPES[EXPLICIT], images)
        ):
            return float(np.square(answers(network, images) - answers(teacher, images)).mean())

    untrained, state = error(), None
    for number in range(2):
        state = epoch(network, teacher, images, number, state)
    assert error() < 0.7 * untrained
    norms = {
        f"{path}.{name}"
        for path, module in network.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for name in module.state_dict()
    }
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert {name for name in before if torch.equal(before[name], after[name])} >= norms
    assert not torch.equal(before["stem.0.conv.weight"], after["stem.0.conv.weight"])


def test_an_epoch_in_another_process_is_the_same_epoch(
    tiny_network: Callable[[str], CMT], images: PreparedImages
) -> None:
    teacher = tiny_network("official")
    whole = copy.deepcopy(teacher)
    state = epoch(whole, teacher, images, 0, None)
    stopped = copy.deepcopy(teacher)
    stopped.load_state_dict(whole.state_dict())
    kept = copy.deepcopy(state)
    epoch(whole, teacher, images, 1, state)
    epoch(stopped, teacher, images, 1, kept)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, stopped.state_dict()[name])


def test_ranges_are_chosen_by_the_method_asked_for(
    tiny_network: Callable[[str], CMT], images: PreparedImages
) -> None:
    network = outlying(tiny_network("official"))
    found = []
    for method in ("minmax", "percentile"):
        with rounded(
            network, RECIPES[EXPLICIT], observe_inputs(network, RECIPES[EXPLICIT], images), method
        ):
            found.append(answers(network, images))
    assert not np.array_equal(*found)


@pytest.mark.parametrize("family", ["official", "flyegle"])
def test_fitted_weights_are_their_own_nearest_levels(
    tiny_network: Callable[[str], CMT], images: PreparedImages, family: str
) -> None:
    network, recipe = tiny_network(family), RECIPES[EXPLICIT]
    histograms = observe_inputs(network, recipe, images)
    exact = answers(network, images)
    with rounded(network, recipe, histograms):
        nearest = answers(network, images)
    fit_weights(network, recipe, images, histograms, MSE)
    fitted = {path: layer.weight.clone() for path, layer in int8_layers(network, recipe).items()}
    with rounded(network, recipe, histograms):
        ours = answers(network, images)
        for path, layer in int8_layers(network, recipe).items():
            torch.testing.assert_close(layer.weight, fitted[path], rtol=1e-5, atol=1e-7)
    assert np.square(ours - exact).mean() < np.square(nearest - exact).mean()
