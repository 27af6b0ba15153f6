"""FP16 graphs: types stated everywhere, and a CPU session that rounds as they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from whole_recipe import quantize_onnx

from cmt.errors import InputError
from cmt.quantize.half import measure_ranges, to_fp16
from cmt.quantize.recipe import EXPLICIT, RECIPES
from cmt.targets.simulation import simulation_session

Array = NDArray[np.float32]
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
FLOAT_ISLANDS = {"LayerNormalization", "Softmax"}


def images(seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(2, 3, 64, 64)).astype(np.float32)


def small_graph(
    nodes: Sequence[onnx.NodeProto], outputs: dict[str, list[int]], **constants: Array
) -> onnx.ModelProto:
    """A graph with the float input `x` of shape (1, 4, 8, 8)."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def simulate(model: onnx.ModelProto, batch: Array, folder: Path) -> list[Array]:
    path = folder / "graph.onnx"
    onnx.save(model, path)
    session = simulation_session(path, 1)
    return session.run(None, {session.get_inputs()[0].name: batch})


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    infos = [*inferred.value_info, *inferred.input, *inferred.output]
    types = {info.name: info.type.tensor_type.elem_type for info in infos}
    return types | {tensor.name: tensor.data_type for tensor in inferred.initializer}


@pytest.fixture(scope="module")
def official(float_graph: Callable[[str], Path]) -> onnx.ModelProto:
    return onnx.load(float_graph("official"))


@pytest.fixture(scope="module")
def half(official: onnx.ModelProto) -> onnx.ModelProto:
    return to_fp16(official)


@pytest.mark.parametrize("quantised", [False, True], ids=["fp16", "int8"])
@pytest.mark.parametrize("family", ["official", "flyegle"])
def test_only_layer_norm_and_softmax_compute_in_float32(
    float_graph: Callable[[str], Path], family: str, quantised: bool
) -> None:
    model = onnx.load(float_graph(family))
    model = to_fp16(quantize_onnx(model, [images()], RECIPES[EXPLICIT]) if quantised else model)
    types = types_of(model)
    in_float32 = {
        node.op_type
        for node in model.graph.node
        if node.op_type != "Cast" and FLOAT in {types[n] for n in [*node.input, *node.output]}
    }
    assert in_float32 == FLOAT_ISLANDS


def test_inputs_and_outputs_keep_name_type_and_shape(
    official: onnx.ModelProto, half: onnx.ModelProto
) -> None:
    assert half.graph.input == official.graph.input
    assert half.graph.output == official.graph.output
    assert half.opset_import == official.opset_import


def test_weights_keep_their_names_and_halve_their_size(
    official: onnx.ModelProto, half: onnx.ModelProto
) -> None:
    before = {t.name: t for t in official.graph.initializer}
    after = {t.name: t for t in half.graph.initializer}
    name = "stages.3.blocks.0.ffn.expand.weight"
    expected = numpy_helper.to_array(before[name]).astype(np.float16)
    np.testing.assert_array_equal(numpy_helper.to_array(after[name]), expected)
    assert half.ByteSize() < 0.65 * official.ByteSize()


def test_the_given_graph_is_left_alone(official: onnx.ModelProto) -> None:
    before = official.SerializeToString()
    to_fp16(official)
    assert official.SerializeToString() == before


def test_fp16_answers_nearly_as_float32_does(
    official: onnx.ModelProto, half: onnx.ModelProto, tmp_path: Path
) -> None:
    [expected] = simulate(official, images(), tmp_path)
    [got] = simulate(half, images(), tmp_path)
    assert 0 < np.abs(got - expected).max() < 0.01 * np.abs(expected).max()


def test_int8_in_fp16_answers_nearly_as_int8_in_float32(
    official: onnx.ModelProto, tmp_path: Path
) -> None:
    quantised = quantize_onnx(official, [images()], RECIPES[EXPLICIT])
    [expected] = simulate(quantised, images(), tmp_path)
    [got] = simulate(to_fp16(quantised), images(), tmp_path)
    assert np.abs(got - expected).max() < 0.03 * np.abs(expected).max()


def test_int8_weights_and_scales_survive_fp16_unchanged(official: onnx.ModelProto) -> None:
    quantised = quantize_onnx(official, [images()], RECIPES[EXPLICIT])
    before = {t.name: numpy_helper.to_array(t) for t in quantised.graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in to_fp16(quantised).graph.initializer}
    kept = [name for name in before if name.endswith(("_q", "_scale"))]
    assert kept
    assert all((before[name] == after[name]).all() for name in kept)
    assert {after[name].dtype for name in kept} == {np.dtype(np.int8), np.dtype(np.float16)}


def test_the_simulation_rounds_after_every_operator_exactly_as_fp16_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x, a, b = rng.normal(size=(3, 1, 4, 8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Mul", ["x", "a"], ["scaled"]),
        helper.make_node("Add", ["scaled", "b"], ["shifted"]),
        helper.make_node("Mul", ["shifted", "scaled"], ["y"]),
    ]
    [got] = simulate(to_fp16(small_graph(nodes, {"y": [1, 4, 8, 8]}, a=a, b=b)), x, tmp_path)
    scaled = x.astype(np.float16) * a.astype(np.float16)
    expected = (scaled + b.astype(np.float16)) * scaled
    np.testing.assert_array_equal(got, expected.astype(np.float32))


def test_the_simulation_of_a_convolution_matches_torch_half(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    x, weight = rng.normal(size=(1, 4, 8, 8)), rng.normal(size=(6, 4, 3, 3))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Gelu", ["c"], ["y"]),
    ]
    model = small_graph(nodes, {"y": [1, 6, 8, 8]}, w=weight.astype(np.float32))
    [got] = simulate(to_fp16(model), x.astype(np.float32), tmp_path)
    expected = torch.nn.functional.gelu(
        torch.conv2d(torch.tensor(x).half(), torch.tensor(weight).half(), padding=1)
    )
    # One unit in the last place where the order of the sum decides the rounding.
    np.testing.assert_allclose(got, expected.float().numpy(), rtol=2**-9, atol=2**-12)
    np.testing.assert_array_equal(got, got.astype(np.float16).astype(np.float32))


def overflowing() -> onnx.ModelProto:
    """y = x * 1000 * 1000 * 1e-4: the second product is beyond FP16."""
    nodes = [
        helper.make_node("Mul", ["x", "thousand"], ["large"]),
        helper.make_node("Mul", ["large", "thousand"], ["huge"]),
        helper.make_node("Mul", ["huge", "small"], ["y"]),
    ]
    thousand, small = np.array(1000, np.float32), np.array(1e-4, np.float32)
    return small_graph(nodes, {"y": [1, 4, 8, 8]}, thousand=thousand, small=small)


def test_the_simulation_shows_overflow(tmp_path: Path) -> None:
    ones = np.ones((1, 4, 8, 8), np.float32)
    [got] = simulate(to_fp16(overflowing()), ones, tmp_path)
    assert np.isinf(got).all()


def test_tensors_measured_beyond_fp16_stay_float32(tmp_path: Path) -> None:
    ones = np.ones((1, 4, 8, 8), np.float32)
    model = to_fp16(overflowing(), {"large": 1000.0, "huge": 1e6})
    [got] = simulate(model, ones, tmp_path)
    np.testing.assert_allclose(got, 100, rtol=1e-3)
    types = types_of(model)
    assert (types["large"], types["huge_float"]) == (HALF, FLOAT)
    assert "huge" not in types


def test_a_quantised_tensor_beyond_fp16_stays_float32_behind_its_pair(tmp_path: Path) -> None:
    nodes = [
        *overflowing().graph.node[:2],
        helper.make_node("QuantizeLinear", ["huge", "scale", "zero"], ["huge_q"]),
        helper.make_node("DequantizeLinear", ["huge_q", "scale", "zero"], ["huge_dq"]),
        helper.make_node("Mul", ["huge_dq", "small"], ["y"]),
    ]
    constants = {
        "thousand": np.array(1000, np.float32),
        "scale": np.array(1e4, np.float32),
        "zero": np.array(0, np.int8),
        "small": np.array(1e-4, np.float32),
    }
    graph = small_graph(nodes, {"y": [1, 4, 8, 8]}, **constants)
    model = to_fp16(graph, {"large": 1000.0, "huge": 1e6})
    [got] = simulate(model, np.ones((1, 4, 8, 8), np.float32), tmp_path)
    np.testing.assert_allclose(got, 100, rtol=1e-3)


def test_an_output_that_the_graph_reads_on_stays_float32_outside(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["stage1"]),
        helper.make_node("Add", ["stage1", "x"], ["stage2"]),
    ]
    shape = [1, 4, 8, 8]
    model = to_fp16(small_graph(nodes, {"stage1": shape, "stage2": shape}))
    assert [(o.name, types_of(model)[o.name]) for o in model.graph.output] == [
        ("stage1", FLOAT),
        ("stage2", FLOAT),
    ]
    x = np.linspace(-4, 4, 256, dtype=np.float32).reshape(shape)
    first, second = simulate(model, x, tmp_path)
    np.testing.assert_allclose(first, 1 / (1 + np.exp(-x)), atol=1e-3)
    np.testing.assert_allclose(second, first + x, atol=4e-3)


def test_casts_of_the_graph_itself_end_in_fp16_too(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], saturate=1, to=TensorProto.INT32),
        helper.make_node("Cast", ["whole"], ["floor"], saturate=1, to=FLOAT),
        helper.make_node("Add", ["floor", "x"], ["y"]),
    ]
    model = to_fp16(small_graph(nodes, {"y": [1, 4, 8, 8]}))
    assert (types_of(model)["whole"], types_of(model)["floor"]) == (TensorProto.INT32, HALF)
    [got] = simulate(model, np.full((1, 4, 8, 8), 2.5, np.float32), tmp_path)
    np.testing.assert_array_equal(got, 4.5)


@pytest.mark.parametrize("value", [70000.0, -1e6, np.inf, np.nan])
def test_weights_beyond_fp16_are_refused_by_name(value: float) -> None:
    weight = np.zeros((1, 4, 1, 1), np.float32)
    weight[0, 2] = value
    nodes = [helper.make_node("Conv", ["x", "stem.0.conv.weight"], ["y"])]
    model = small_graph(nodes, {"y": [1, 1, 8, 8]}, **{"stem.0.conv.weight": weight})
    with pytest.raises(InputError, match=r"stem\.0\.conv\.weight"):
        to_fp16(model)


def test_graphs_that_are_not_simplified_are_refused() -> None:
    value = numpy_helper.from_array(np.array(2, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["two"], value=value),
        helper.make_node("Mul", ["x", "two"], ["y"]),
    ]
    with pytest.raises(InputError, match="Constant"):
        to_fp16(small_graph(nodes, {"y": [1, 4, 8, 8]}))


def test_measured_ranges_keep_what_overflows_fp16_in_fp32(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "large"], ["wide"]),
        helper.make_node("Mul", ["wide", "small"], ["y"]),
    ]
    graph = small_graph(
        nodes, {"y": [1, 4, 8, 8]}, large=np.float32([4e4]), small=np.float32([1e-4])
    )
    x = np.full((1, 4, 8, 8), 2, np.float32)
    ranges = measure_ranges(graph, [x, x / 2])
    assert ranges == {"wide": pytest.approx(8e4), "y": pytest.approx(8.0)}
    assert not np.isfinite(simulate(to_fp16(graph), x, tmp_path)[0]).any()
    np.testing.assert_allclose(simulate(to_fp16(graph, ranges), x, tmp_path)[0], 8, rtol=2e-3)


def test_a_unit_kept_float_is_an_island_with_what_follows_it(official: onnx.ModelProto) -> None:
    model = to_fp16(official, keep_float={"ffn expand, stage 2"})
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    block = "stages.1.blocks.0.ffn"
    assert kinds[f"{block}.expand.weight_float"] == TensorProto.FLOAT
    assert kinds[f"{block}.depthwise.weight"] == TensorProto.FLOAT16
    assert kinds["stages.0.blocks.0.ffn.expand.weight"] == TensorProto.FLOAT16
    types = {
        info.name: info.type.tensor_type.elem_type
        for info in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    expand = next(n for n in model.graph.node if f"{block}.expand.weight_float" in n.input)
    gelu = next(n for n in model.graph.node if expand.output[0] in n.input)
    assert (expand.op_type, gelu.op_type) == ("Conv", "Gelu")
    assert types[gelu.output[0]] == TensorProto.FLOAT
