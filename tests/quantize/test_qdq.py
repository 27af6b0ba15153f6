"""Explicit Q/DQ: what it covers, what it stores, how far it is from the float graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from whole_recipe import quantize_onnx

from cmt.errors import InputError
from cmt.quantize.qdq import insert_qdq, int8_units, layers_by_unit, observe
from cmt.quantize.ranges import METHODS, Histogram, load_histograms, save_histograms, signed_levels
from cmt.quantize.recipe import EXPLICIT, OPENVINO, RECIPES, ROLES, role_of

Array = NDArray[np.float32]


def batches(count: int = 4, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(2, 3, 64, 64)).astype(np.float32) for _ in range(count)]


@pytest.fixture(scope="module")
def official(float_graph: Callable[[str], Path]) -> onnx.ModelProto:
    return onnx.load(float_graph("official"))


@pytest.fixture(scope="module")
def quantised(official: onnx.ModelProto) -> onnx.ModelProto:
    return quantize_onnx(official, batches(), RECIPES[EXPLICIT])


def run(model: onnx.ModelProto, batch: Array) -> Array:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"input": batch})[0]


def constants(model: onnx.ModelProto) -> dict[str, NDArray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def count(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def products(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, set[str]]]:
    """Convolutions and matrix products, each with the names of its bias.

    Which may be that of a sum behind it: the lowest onnxsim leaves MatMul and Add apart.
    """
    sums = {n.input[0]: n for n in model.graph.node if n.op_type == "Add"}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            behind = sums.get(node.output[0])
            yield node, {*node.input[2:], *(behind.input if behind is not None else ())}


def layers_in_int8(model: onnx.ModelProto) -> set[str]:
    """Paths of the layers whose two operands both come from DequantizeLinear."""
    dequantised = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    found = set()
    for node, biases in products(model):
        if set(node.input[:2]) <= dequantised:
            names = {node.input[1].removesuffix("_dq"), *biases}
            found |= {n.rsplit(".", 1)[0] for n in names if n.endswith((".weight", ".bias"))}
    return found


def test_int8_answers_nearly_as_float_does(
    official: onnx.ModelProto, quantised: onnx.ModelProto
) -> None:
    batch = batches(1, seed=9)[0]
    expected, got = run(official, batch), run(quantised, batch)
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert 1e-6 < error < 0.05


@pytest.mark.parametrize("family", ["official", "flyegle"])
def test_the_layers_of_the_recipe_are_int8_and_no_others(
    float_graph: Callable[[str], Path], family: str
) -> None:
    found = layers_in_int8(
        quantize_onnx(onnx.load(float_graph(family)), batches(1), RECIPES[EXPLICIT])
    )
    block = "stages.1.blocks.0"
    assert {f"{block}.{name}" for name in ("attention.q", "attention.k", "attention.v")} <= found
    assert {f"{block}.{name}" for name in ("attention.proj", "ffn.expand", "ffn.project")} <= found
    assert {"stages.1.entry.conv", "head.features"} <= found
    assert not {f"{block}.lpu", f"{block}.ffn.depthwise", "stem.1.conv"} & found
    assert not {"stages.0.entry.conv", "head.classifier"} & found
    # The reduction is depthwise in one family and dense in the other.
    assert (f"{block}.attention.reduce.conv" in found) == (family == "flyegle")


def test_merged_linear_layers_are_found_behind_their_split(
    official: onnx.ModelProto, quantised: onnx.ModelProto
) -> None:
    merged = [node.input[1] for node in official.graph.node if node.op_type == "MatMul"]
    names = constants(official)
    weights = [name for name in merged if name in names]
    assert weights
    levels = constants(quantised)[f"{weights[0]}_q"]
    scale = constants(quantised)[f"{weights[0]}_scale"]
    np.testing.assert_allclose(levels * scale, names[weights[0]], atol=float(scale.max()))


def test_everything_but_the_pairs_stays_as_it_was(
    official: onnx.ModelProto, quantised: onnx.ModelProto
) -> None:
    added = count(quantised) - count(official)
    assert set(added) == {"QuantizeLinear", "DequantizeLinear"}
    assert not count(official) - count(quantised)
    assert quantised.graph.input == official.graph.input
    assert quantised.graph.output == official.graph.output


def test_a_tensor_is_quantised_once_for_all_its_readers(quantised: onnx.ModelProto) -> None:
    sources = [n.input[0] for n in quantised.graph.node if n.op_type == "QuantizeLinear"]
    assert len(sources) == len(set(sources))
    inputs = {bias: node.input[0] for node, biases in products(quantised) for bias in biases}
    attention = "stages.0.blocks.0.attention"
    assert inputs[f"{attention}.k.bias"] == inputs[f"{attention}.v.bias"]


def test_weights_are_stored_as_int8_only(
    official: onnx.ModelProto, quantised: onnx.ModelProto
) -> None:
    before, after = constants(official), constants(quantised)
    name = "stages.3.blocks.0.ffn.expand.weight"
    assert name not in after
    assert after[f"{name}_q"].dtype == np.int8
    assert after[f"{name}_q"].min() >= -127
    scale = after[f"{name}_scale"]
    assert scale.shape == (before[name].shape[0],)
    error = np.abs(after[f"{name}_q"] * scale[:, None, None, None] - before[name])
    # Half a step, and a little where the scale was rounded down to FP16.
    assert (error.max((1, 2, 3)) < 0.6 * scale).all()


def test_scales_are_exact_in_fp16(quantised: onnx.ModelProto) -> None:
    scales = [value for name, value in constants(quantised).items() if name.endswith("_scale")]
    assert all((value > 0).all() for value in scales)
    assert all((value.astype(np.float16).astype(np.float32) == value).all() for value in scales)


def test_batches_are_streamed_and_progress_counts_images(official: onnx.ModelProto) -> None:
    seen: list[int] = []
    drawn: list[int] = []

    def stream() -> Iterator[Array]:
        for i, batch in enumerate(batches(5)):
            assert i - len(seen) <= 2  # read ahead, one for each thread
            drawn.append(i)
            yield batch

    observe(official, stream(), RECIPES[EXPLICIT], progress=seen.append, threads=2)
    assert drawn == [0, 1, 2, 3, 4]
    assert seen == [2] * 5


def test_the_given_graph_is_left_alone(official: onnx.ModelProto) -> None:
    before = official.SerializeToString()
    quantize_onnx(official, batches(1), RECIPES[EXPLICIT])
    assert official.SerializeToString() == before


def test_quantising_twice_is_refused(quantised: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match="already"):
        quantize_onnx(quantised, batches(1), RECIPES[EXPLICIT])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "got none"),
        ([np.zeros((1, 3, 64, 64), np.float32)], r"\(1, 3, 64, 64\)"),
        ([np.full((2, 3, 64, 64), np.nan, np.float32)], "NaN"),
    ],
)
def test_unusable_calibration_is_refused(
    official: onnx.ModelProto, images: list[Array], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        quantize_onnx(official, images, RECIPES[EXPLICIT])


def test_a_layer_without_a_role_is_refused() -> None:
    with pytest.raises(InputError, match=r"stages\.0\.surprise\.weight"):
        role_of(["stages.0.surprise.weight", "val_7"])


def test_the_bias_tells_the_role_of_a_renamed_weight() -> None:
    assert role_of(["val_57", "stages.2.blocks.9.attention.q.bias"]).name == "attention input"


def test_every_role_states_its_reason_and_a_name_of_its_own() -> None:
    assert len({role.name for role in ROLES}) == len(ROLES)
    assert all(role.reason for role in ROLES)


def test_the_histogram_keeps_every_value_when_its_range_grows() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=5000).astype(np.float32) * scale for scale in (0.01, 1, 30)]
    grown, whole = Histogram(), Histogram()
    for part in parts:
        grown.add(part)
    whole.add(np.concatenate(parts))
    assert grown.counts.sum() == whole.counts.sum() == 15000
    assert grown.levels(asymmetric=False).scale == pytest.approx(
        whole.levels(asymmetric=False).scale, rel=0.03
    )


def test_a_lone_outlier_is_clipped_and_an_even_spread_is_not() -> None:
    rng = np.random.default_rng(0)
    even, lone = Histogram(), Histogram()
    even.add(rng.uniform(-3, 3, 100_000).astype(np.float32))
    lone.add(np.append(rng.normal(size=100_000), 12).astype(np.float32))
    assert even.levels(asymmetric=False).scale * 127 == pytest.approx(3, rel=0.02)
    assert 3 < lone.levels(asymmetric=False).scale * 127 < 9


def test_a_tensor_that_is_always_zero_gets_a_usable_scale() -> None:
    histogram = Histogram()
    histogram.add(np.zeros((2, 3), np.float32))
    assert histogram.levels(asymmetric=False).scale == histogram.levels(asymmetric=True).scale == 1


def test_unsigned_levels_spend_nothing_on_a_side_that_is_empty() -> None:
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    after_gelu = values * (1 + np.tanh(values)) / 2
    histogram = Histogram()
    histogram.add(after_gelu)
    errors = [
        np.square(levels.round_trip(after_gelu) - after_gelu).mean()
        for levels in (histogram.levels(asymmetric=False), histogram.levels(asymmetric=True))
    ]
    assert errors[1] < 0.5 * errors[0]


def test_zero_is_exact_under_unsigned_levels() -> None:
    histogram = Histogram()
    histogram.add(np.linspace(-0.17, 5, 1000, dtype=np.float32))
    assert histogram.levels(asymmetric=True).round_trip(np.zeros(1))[0] == 0


@pytest.mark.parametrize("family", ["official", "flyegle"])
def test_openvino_gets_int8_depthwise_convolutions_in_the_ffn_alone(
    family: str, rewritten_graph: Callable[[str], Path]
) -> None:
    model = quantize_onnx(onnx.load(rewritten_graph(family)), batches(1), RECIPES[OPENVINO])
    found = layers_in_int8(model)
    depthwise = {name for name in found if name.endswith(("ffn.depthwise", "lpu"))}
    assert depthwise == {name for name in depthwise if name.endswith("ffn.depthwise")}
    assert {"stem.1.conv", "stages.0.blocks.0.ffn.depthwise", "stages.3.entry.conv"} <= found


def test_a_norm_is_quantised_before_its_layout_changes(
    rewritten_graph: Callable[[str], Path],
) -> None:
    model = quantize_onnx(onnx.load(rewritten_graph("official")), batches(1), RECIPES[OPENVINO])
    producers = {name: node for node in model.graph.node for name in node.output}
    sources = [
        producers[node.input[0]].op_type
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in producers
    ]
    assert "LayerNormalization" in sources
    moves = [n for n in model.graph.node if n.op_type == "Transpose" and n.name.endswith("_dq")]
    assert moves
    assert all(producers[n.input[0]].op_type in ("Reshape", "DequantizeLinear") for n in moves)


def test_the_rewritten_graph_in_int8_stays_close_to_float(
    rewritten_graph: Callable[[str], Path],
) -> None:
    model = onnx.load(rewritten_graph("official"))
    reference, batch = run(model, batches(1, 5)[0]), batches(1, 5)[0]
    ours = run(quantize_onnx(model, batches(), RECIPES[OPENVINO]), batch)
    assert np.sqrt(np.square(ours - reference).mean() / np.square(reference).mean()) < 0.1


def test_units_are_roles_by_stage_and_count_their_layers(official: onnx.ModelProto) -> None:
    units = int8_units(official, RECIPES[EXPLICIT])
    assert units["ffn expand, stage 3"].layers == 2
    assert units["stage entry, stage 4"].layers == 1
    assert units["head features"].layers == 1
    # Stage 3 of the tiny network: 4 x 4 positions, two blocks, 32 -> 115 channels, batch 2.
    assert units["ffn expand, stage 3"].macs == 2 * 2 * 16 * 32 * 115


def test_a_unit_kept_float_is_left_alone_and_its_input_serves_the_others(
    official: onnx.ModelProto,
) -> None:
    histograms = observe(official, batches(1), RECIPES[EXPLICIT])
    kept = insert_qdq(official, histograms, RECIPES[EXPLICIT], keep_float={"ffn expand, stage 3"})
    everything = insert_qdq(official, histograms, RECIPES[EXPLICIT])
    gone = layers_in_int8(everything) - layers_in_int8(kept)
    assert gone == {f"stages.2.blocks.{i}.ffn.expand" for i in (0, 1)}
    assert "stages.2.blocks.0.ffn.expand.weight" in constants(kept)


def test_a_layer_kept_float_leaves_the_others_of_its_unit_in_int8(
    official: onnx.ModelProto,
) -> None:
    names = layers_by_unit(official, RECIPES[EXPLICIT])["ffn expand, stage 3"]
    assert names == [f"stages.2.blocks.{i}.ffn.expand" for i in (0, 1)]
    histograms = observe(official, batches(1), RECIPES[EXPLICIT])
    kept = insert_qdq(official, histograms, RECIPES[EXPLICIT], keep_float=names[1:])
    everything = insert_qdq(official, histograms, RECIPES[EXPLICIT])
    assert layers_in_int8(everything) - layers_in_int8(kept) == {names[1]}


def test_histograms_are_saved_and_read_back(official: onnx.ModelProto, tmp_path: Path) -> None:
    histograms = observe(official, batches(1), RECIPES[EXPLICIT])
    save_histograms(histograms, tmp_path / "h.npz")
    again = load_histograms(tmp_path / "h.npz")
    first, second = (insert_qdq(official, h, RECIPES[EXPLICIT]) for h in (histograms, again))
    assert first == second


def test_ranges_shrink_from_the_extremes_to_what_the_error_asks_for() -> None:
    histogram = Histogram()
    rng = np.random.default_rng(0)
    histogram.add(np.append(rng.normal(size=1_000_000), 40).astype(np.float32))
    top = {method: histogram.levels(False, method).range[1] for method in METHODS}
    assert top["minmax"] == pytest.approx(40, rel=0.01)
    assert 4 < top["percentile"] < 5.5
    assert 7.5 < top["mse"] < 20
    assert 7.5 < top["entropy"] < 20
    unsigned = {method: histogram.levels(True, method).range for method in METHODS}
    assert all(low < -3 and high > 3 for low, high in unsigned.values())


def test_what_levels_clip_is_counted() -> None:
    histogram = Histogram()
    histogram.add(np.linspace(0.01, 1, 1000, dtype=np.float32))
    assert histogram.share_outside(signed_levels(0.75)) == pytest.approx(0.25, abs=0.01)
    assert histogram.share_outside(histogram.levels(True, "minmax")) == 0


def test_levels_follow_what_is_counted_later() -> None:
    histogram = Histogram()
    for largest in (1, 4):
        histogram.add(np.array([-largest, largest], np.float32))
        levels = histogram.levels(asymmetric=False, method="minmax")
        assert levels.range[1] == pytest.approx(largest, rel=0.01)


@pytest.mark.parametrize("tiny", [1e-40, 2e-35])
def test_values_next_to_zero_count_as_zero(tiny: float) -> None:
    histogram = Histogram()
    histogram.add(np.array([tiny, -tiny, 0], np.float32))
    histogram.add(np.array([0.5, -0.5], np.float32))
    assert histogram.counts.sum() == 5
    levels = histogram.levels(asymmetric=False, method="minmax")
    assert levels.range[1] == pytest.approx(0.5, rel=0.01)
