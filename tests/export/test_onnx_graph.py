"""Graphs hold for any batch, and can take images as they come out of the crop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from exported_once import put_weights
from onnx import numpy_helper
from whole_recipe import quantize_onnx

from cmt.bundle.golden import run_artefact, verify
from cmt.bundle.reader import OpenBundle, open_bundle
from cmt.calib_data.preprocessing import Preprocessing
from cmt.export.onnx_graph import _name_constants, embed_preprocessing, export_onnx
from cmt.export.pipeline import Bundle
from cmt.network import CMT
from cmt.quantize.half import to_fp16
from cmt.quantize.recipe import EXPLICIT, RECIPES
from cmt.rewrite import InferenceCMT, rewrite_for_inference
from cmt.targets.base import SIMULATED
from cmt.targets.entries import Entry
from cmt.targets.onnx_edit import free_batch
from cmt.targets.openvino import build_ir
from cmt.targets.registry import LOADERS
from cmt.tensor_cores import fit_tensor_cores

PREPROCESSING = Preprocessing((64, 64), (64, 64), mean=(0.1, 0.5, 0.4), std=(0.2, 0.3, 0.25))
PIXELS = np.random.default_rng(3).integers(0, 256, (2, 64, 64, 3), np.uint8)
IMAGES = PREPROCESSING.normalise(PIXELS)


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("kind", ["float_graph", "rewritten_graph"])
@pytest.mark.parametrize("family", ["official", "flyegle"])
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_files_run_any_batch(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, family: str, runtime: str
) -> None:
    graph = request.getfixturevalue(kind)(family)
    if runtime == "openvino":
        path = tmp_path / "graph.xml"
        build_ir(graph, "fp32", path)
    else:
        path = tmp_path / "graph.onnx"
        model = onnx.load(graph)
        free_batch(model)
        onnx.save(model, path)
    images = np.random.default_rng(4).normal(size=(6, 3, 64, 64)).astype(np.float32)
    load = LOADERS[runtime]
    (expected,) = load(path, 1, None, 6)(images)
    for size in (1, 2, 3):
        runner = load(path, 1, None, size)
        parts = [runner(images[i : i + size])[0] for i in range(0, 6, size)]
        assert largest_difference(np.concatenate(parts), expected) < 1e-5


# What rounding the input otherwise may do: to the last bit of float32, to an FP16 number, and to
# an INT8 step of a few values where the runtime computes with them.
@pytest.mark.parametrize(
    ("precision", "runtime", "limit"),
    [
        ("fp32", "onnxruntime", 1e-5),
        ("fp32", "openvino", 1e-5),
        ("half", SIMULATED, 2e-3),
        ("qdq", "onnxruntime", 1e-2),
        ("qdq", "openvino", 1e-2),
    ],
)
def test_preprocessing_inside_answers_as_outside(
    float_graph: Callable[[str], Path], tmp_path: Path, precision: str, runtime: str, limit: float
) -> None:
    model = onnx.load(float_graph("official"))
    if precision == "half":
        model = to_fp16(model)
    elif precision == "qdq":
        model = quantize_onnx(model, [IMAGES], RECIPES[EXPLICIT])
    outputs = []
    for name, graph, batch in (
        ("outside", model, IMAGES),
        ("inside", embed_preprocessing(model, PREPROCESSING), PIXELS),
    ):
        path = tmp_path / f"{name}.onnx"
        onnx.save(graph, path)
        if runtime == "openvino":
            build_ir(path, "fp32", path.with_suffix(".xml"))
            path = path.with_suffix(".xml")
        outputs.append(LOADERS[runtime](path, 1)(batch)[0])
    assert largest_difference(outputs[1], outputs[0]) < limit


def test_the_shift_is_right_along_the_border_too(
    float_graph: Callable[[str], Path], tmp_path: Path
) -> None:
    """The padding stays zero after normalising: folding the shift would move it by -mean / std."""
    model = onnx.load(float_graph("official"))
    first = next(node for node in model.graph.node if node.op_type == "Conv").output[0]
    maps = []
    for graph, batch in ((model, IMAGES), (embed_preprocessing(model, PREPROCESSING), PIXELS)):
        graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(first))
        path = tmp_path / "graph.onnx"
        onnx.save(graph, path)
        maps.append(LOADERS["onnxruntime"](path, 1)(batch)[1])
    assert largest_difference(maps[1], maps[0]) < 1e-5


def test_a_bundle_of_uint8_files_answers_as_one_of_float_files(
    bundle: Bundle, uint8_bundle: Bundle
) -> None:
    outside, inside = open_bundle(bundle.path), open_bundle(uint8_bundle.path)
    described = inside.manifest["input"]
    assert (described["dtype"], described["layout"]) == ("uint8", "NHWC")
    assert described["shape"] == [3, 64, 64, 3]
    for entry in inside.manifest["artefacts"]:
        if entry["path"].endswith(".onnx"):
            (source,) = onnx.load(inside.file(entry)).graph.input
            assert source.name == described["name"]
            assert source.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert {a["target"] for a in inside.artefacts} == {a["target"] for a in outside.artefacts}
    others = {(a["target"], a["precision"]): a for a in outside.artefacts}
    for artefact in inside.artefacts:
        precision = artefact["precision"]
        other = others[artefact["target"], precision]
        ours, theirs = answers(inside, artefact), answers(outside, other)
        if precision == "int8":  # a level that is rounded the other way costs what INT8 itself does
            exact = answers(outside, others["openvino", "fp32"])
            limit = 1.5 * largest_difference(theirs, exact)
            assert largest_difference(ours, exact) < limit, artefact["path"]
        else:
            limit = {"fp32": 1e-5, "fp16": 2e-3}[precision]
            assert largest_difference(ours, theirs) < limit, artefact["path"]


def answers(bundle: OpenBundle, artefact: Entry) -> np.ndarray:
    """Logits of the golden images; in float32 where OpenVINO would round each sum to BF16."""
    if artefact["target"] != "openvino":
        return np.load(bundle.file(artefact["golden"]["outputs"][0]))
    images = bundle.preprocessing.feed(np.load(bundle.file(bundle.manifest["golden"]["images"])))
    settings = {**artefact["settings"], "INFERENCE_PRECISION_HINT": "f32"}
    return run_artefact(bundle, {**artefact, "settings": settings}, images, 1)[0]


def test_a_bundle_of_uint8_files_is_verified(uint8_bundle: Bundle) -> None:
    opened = open_bundle(uint8_bundle.path)
    checks = {check.name: check.passed for check in verify(opened, 1)}
    assert checks.pop("preprocessing") is True
    assert False not in checks.values()
    assert list(checks.values()).count(True) == 5
    images = np.load(opened.file(opened.manifest["golden"]["images"]))
    (logits,) = run_artefact(opened, opened.artefacts[0], images, 1)
    assert len(logits) == len(images)


@pytest.mark.parametrize(
    ("form", "value", "expected"),
    [
        ("value_float", 2.5, np.float32(2.5)),
        ("value_ints", [1, -1], np.array([1, -1], np.int64)),
        ("value", numpy_helper.from_array(np.float32([3])), np.float32([3])),
    ],
)
def test_constants_of_every_form_become_initialisers(
    form: str, value: object, expected: np.ndarray
) -> None:
    node = onnx.helper.make_node("Constant", [], ["constant"], **{form: value})
    graph = onnx.helper.make_graph([node], "graph", [], [])
    _name_constants(graph)
    (constant,) = graph.initializer
    assert not graph.node
    assert constant.name == "constant"
    read = numpy_helper.to_array(constant)
    assert (read.dtype, read.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize(
    ("form", "family"), [(rewrite_for_inference, "official"), (fit_tensor_cores, "flyegle")]
)
def test_one_graph_with_the_weights_of_another_network_is_that_networks(
    make_tiny: Callable[..., CMT],
    form: Callable[[CMT], InferenceCMT],
    family: str,
    tmp_path: Path,
) -> None:
    one, other = (form(make_tiny(family, seed=seed)) for seed in (0, 1))
    for name, network in (("one", one), ("other", other)):
        export_onnx(network, 2, tmp_path / name)
    put_weights(tmp_path / "one", other, tmp_path / "put")
    assert (tmp_path / "put").read_bytes() == (tmp_path / "other").read_bytes()
