"""Putting stand-ins back to GELU within the ONNX graph, stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cmt.export.onnx_graph import export_onnx, simplify_onnx
from cmt.network import CMT
from cmt.quantize.activation import fit_activations
from cmt.quantize.graft import fitted_units, goes_back, restore_gelu
from cmt.rewrite import rewrite_for_inference

IMAGES = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)


def run(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"input": IMAGES})[0]


@pytest.fixture(scope="module", params=["official", "flyegle"])
def graphs(
    request: pytest.FixtureRequest,
    rewritten_graph: Callable[[str], Path],
    tiny_network: Callable[[str], CMT],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The same network with stand-ins, and without."""
    network = rewrite_for_inference(tiny_network(request.param))
    fit_activations(network, [torch.from_numpy(IMAGES)])
    folder = tmp_path_factory.mktemp("fitted")
    export_onnx(network, 2, folder / "raw.onnx")
    simplify_onnx(folder / "raw.onnx", folder / "fitted.onnx")
    return onnx.load(folder / "fitted.onnx"), onnx.load(rewritten_graph(request.param))


def test_with_all_stages_restored_the_exact_network_answers(
    graphs: tuple[onnx.ModelProto, onnx.ModelProto],
) -> None:
    fitted, exact = graphs
    units = fitted_units(fitted)
    assert units == [f"stand-ins, stage {i}" for i in (1, 2, 3, 4)]
    expected = run(exact)
    scale = np.abs(expected).max()
    assert np.abs(run(fitted) - expected).max() > 1e-4 * scale
    np.testing.assert_allclose(run(restore_gelu(fitted, exact, units)), expected, atol=1e-5 * scale)


def test_one_stage_is_restored_and_the_others_keep_their_fitted_activations(
    graphs: tuple[onnx.ModelProto, onnx.ModelProto],
) -> None:
    fitted, exact = graphs
    restored = restore_gelu(fitted, exact, {"stand-ins, stage 3"})

    def count(model: onnx.ModelProto) -> int:
        return sum(node.op_type == "HardSwish" for node in model.graph.node)

    # Two blocks in the third stage, two activations each.
    assert count(restored) == count(fitted) - 4
    assert {len(n.name) > 0 for n in restored.graph.node} == {True}


def test_the_weights_that_go_back_are_those_that_the_exact_graph_brings(
    graphs: tuple[onnx.ModelProto, onnx.ModelProto],
) -> None:
    fitted, exact = graphs
    units = {"stand-ins, stage 3"}

    def weights(model: onnx.ModelProto) -> dict[str, bytes]:
        layers = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
        return {t.name: t.raw_data for t in model.graph.initializer if t.name in layers}

    before, after = weights(fitted), weights(restore_gelu(fitted, exact, units))
    assert before.keys() == after.keys()
    changed = {name for name, data in before.items() if after[name] != data}
    assert changed == {name for name in before if goes_back(name, units)}
    assert len(changed) == 6  # three layers of two blocks
