"""Fitted weights: what they keep of a layer's result, on which grid, and where they are used."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from cmt.quantize import gptq
from cmt.quantize.gptq import compensated, load_rounded, round_weights, save_rounded, to_bf16
from cmt.quantize.qdq import Rounded, find_layers, insert_qdq, observe, observed
from cmt.quantize.ranges import MSE, Histogram
from cmt.quantize.recipe import EXPLICIT, OPENVINO, RECIPES

Array = NDArray[np.float32]


def batches(count: int, seed: int) -> list[Array]:
    """Smooth images, whose neighbouring pixels go together as those of photos do."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 2, 3, 8, 8, generator=generator)
    return [torch.nn.functional.interpolate(x, (64, 64), mode="bicubic").numpy() for x in coarse]


def error(model: onnx.ModelProto, reference: onnx.ModelProto, given: list[Array]) -> float:
    """Of what the head is given: two logits would be too few to tell noise from noise."""
    (head,) = [
        layer.source
        for layer in find_layers(reference.graph, RECIPES[EXPLICIT])
        if layer.name == "head.features"
    ]
    exact, ours = (
        np.concatenate([values[head] for values in observed(graph, [head], given)])
        for graph in (reference, model)
    )
    return float(np.square(ours - exact).mean() / exact.var())


def constants(model: onnx.ModelProto) -> dict[str, NDArray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.fixture(scope="module", params=[EXPLICIT, OPENVINO])
def fitted(
    request: pytest.FixtureRequest, float_graph: Callable[[str], Path]
) -> tuple[onnx.ModelProto, dict[str, Histogram], str, dict[str, Rounded]]:
    model, recipe = onnx.load(float_graph("official")), RECIPES[request.param]
    histograms = observe(model, batches(32, 0), recipe)
    rounded = round_weights(model, batches(32, 0), histograms, recipe, methods=[MSE])[MSE]
    return model, histograms, request.param, rounded


def test_fitted_weights_answer_nearer_to_float_than_nearest_ones(
    fitted: tuple[onnx.ModelProto, dict[str, Histogram], str, dict[str, Rounded]],
) -> None:
    model, histograms, recipe, rounded = fitted
    quantise = partial(insert_qdq, model, histograms, RECIPES[recipe])
    weights = constants(model)
    bf16 = {
        name: Rounded(to_bf16(weights[name]).astype(np.float32), None, None)
        for name, own in rounded.items()
        if own.scale is None
    }
    unseen = batches(8, 1)
    nearest = error(quantise(rounded=bf16), model, unseen)
    assert error(quantise(rounded=rounded), model, unseen) < 0.95 * nearest


def test_every_weight_is_on_its_grid_and_near_its_own_value(
    fitted: tuple[onnx.ModelProto, dict[str, Histogram], str, dict[str, Rounded]],
) -> None:
    model, histograms, recipe, rounded = fitted
    float_weights = constants(model)
    file = constants(insert_qdq(model, histograms, RECIPES[recipe], rounded=rounded))
    bf16 = [name for name, own in rounded.items() if own.scale is None]
    assert any(name.endswith("lpu.weight") for name in bf16) == (recipe == OPENVINO)
    for name, own in rounded.items():
        before = float_weights[name]
        if own.scale is None:
            np.testing.assert_array_equal(file[name], own.weight)
            np.testing.assert_array_equal(to_bf16(file[name]), file[name])
            now = own.weight
        else:
            np.testing.assert_array_equal(file[f"{name}_q"], own.weight)
            assert own.weight.dtype == np.int8
            assert own.weight.min() >= -127
            axis = before.shape.index(len(own.scale))
            now = own.weight * np.expand_dims(
                own.scale, [i for i in range(before.ndim) if i != axis]
            )
        assert now.shape == before.shape
        assert np.abs(now - before).mean() < 0.1 * np.abs(before).max()


def test_a_layer_that_stays_float_keeps_its_weight_and_bias(
    fitted: tuple[onnx.ModelProto, dict[str, Histogram], str, dict[str, Rounded]],
) -> None:
    model, histograms, recipe, rounded = fitted
    name = "stages.3.blocks.0.ffn.project"
    before = constants(model)
    kept = constants(
        insert_qdq(model, histograms, RECIPES[recipe], keep_float={name}, rounded=rounded)
    )
    replaced = constants(insert_qdq(model, histograms, RECIPES[recipe], rounded=rounded))
    for part in ("weight", "bias"):
        np.testing.assert_array_equal(kept[f"{name}.{part}"], before[f"{name}.{part}"])
    assert (replaced[f"{name}.bias"] != before[f"{name}.bias"]).any()


@pytest.mark.parametrize("groups", [1, 3])
def test_what_one_weight_loses_the_others_take_back(groups: int) -> None:
    rng = np.random.default_rng(0)
    common = rng.standard_normal((groups, 500, 1))
    x = common + 0.2 * rng.standard_normal((groups, 500, 9))
    weight = rng.standard_normal((groups, 4, 9))
    moments = x.transpose(0, 2, 1) @ x
    found = compensated(weight.copy(), 9, moments, lambda values: np.rint(values * 8) / 8)
    np.testing.assert_array_equal(found, np.rint(found * 8) / 8)

    def lost(rounded: NDArray) -> float:
        return float(np.square(x @ (rounded - weight).transpose(0, 2, 1)).mean())

    assert lost(found) < 0.3 * lost(np.rint(weight * 8) / 8)


def test_a_layer_that_is_given_zeros_alone_gets_its_nearest_levels() -> None:
    weight = np.random.default_rng(0).standard_normal((1, 4, 9))
    found = compensated(weight.copy(), 9, np.zeros((1, 9, 9)), np.rint)
    np.testing.assert_array_equal(found, np.rint(weight))


def test_bf16_is_as_torch_rounds_it() -> None:
    values = np.random.default_rng(0).standard_normal(1000) * 10.0 ** np.arange(-5, 5).repeat(100)
    values[:2] = 1 + 2**-8, 1 + 3 * 2**-8  # ties
    expected = torch.from_numpy(values.astype(np.float32)).bfloat16().double().numpy()
    np.testing.assert_array_equal(to_bf16(values), expected)


def test_weights_come_back_from_their_file(tmp_path: Path) -> None:
    levels = np.arange(6, dtype=np.int8).reshape(2, 3)
    given = {
        "a.b.weight": Rounded(levels, np.ones(2, np.float32), np.zeros(2, np.float32)),
        "c.weight": Rounded(levels.astype(np.float32), None, None),
    }
    save_rounded(given, tmp_path / "rounded.npz")
    found = load_rounded(tmp_path / "rounded.npz")
    assert found.keys() == given.keys()
    for name, own in given.items():
        for part in ("weight", "scale", "bias"):
            np.testing.assert_equal(getattr(found[name], part), getattr(own, part))


def test_a_layer_with_too_many_inputs_goes_to_its_nearest_levels(
    float_graph: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gptq, "LARGEST", 100)
    model, recipe = onnx.load(float_graph("official")), RECIPES[EXPLICIT]
    histograms = observe(model, batches(1, 0), recipe)
    rounded = round_weights(model, batches(1, 0), histograms, recipe, methods=[MSE])[MSE]
    inputs = {name: own.weight[0].size for name, own in rounded.items() if own.weight.ndim == 4}
    assert inputs
    assert max(inputs.values()) <= 100


def test_methods_fitted_together_get_what_each_gets_alone(
    float_graph: Callable[[str], Path],
) -> None:
    model, recipe = onnx.load(float_graph("official")), RECIPES[OPENVINO]
    histograms = observe(model, batches(2, 0), recipe)
    fit = partial(round_weights, model, histograms=histograms, recipe=recipe)
    together = fit(batches(2, 0), methods=[MSE, "minmax"])
    for method, rounded in together.items():
        alone = fit(batches(2, 0), methods=[method])[method]
        for name, own in alone.items():
            np.testing.assert_equal(vars(rounded[name]), vars(own))
    (name,) = (
        name for name in together[MSE] if name.endswith("stages.3.blocks.0.ffn.project.weight")
    )
    assert (together[MSE][name].weight != together["minmax"][name].weight).any()
