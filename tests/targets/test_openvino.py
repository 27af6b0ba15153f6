"""Which kernels OpenVINO runs our files with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from whole_recipe import quantize_onnx

from cmt.errors import MachineError
from cmt.quantize.qdq import insert_qdq, int8_units, observe
from cmt.quantize.recipe import OPENVINO, RECIPES
from cmt.targets.machine import describe
from cmt.targets.onnxruntime import load_onnxruntime
from cmt.targets.openvino import build_ir, load_openvino, openvino_core


@pytest.fixture
def int8(float_graph: Callable[[str], Path], tmp_path: Path) -> Path:
    """An INT8 graph in ONNX, its OpenVINO file beside it."""
    batches = [np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)]
    graph = quantize_onnx(onnx.load(float_graph("official")), batches, RECIPES[OPENVINO])
    onnx.save(graph, tmp_path / "int8.onnx")
    build_ir(tmp_path / "int8.onnx", "int8", tmp_path / "int8.xml")
    return tmp_path / "int8.onnx"


def kernels(path: Path) -> dict[str, str]:
    """Executed kernel of each layer of a file, by its name."""
    compiled = openvino_core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    nodes = ((node, node.get_rt_info()) for node in compiled.get_runtime_model().get_ops())
    return {
        node.get_friendly_name(): info["primitiveType"].astype(str)
        for node, info in nodes
        if "Convolution" in info["layerType"].astype(str)
    }


def test_pointwise_convolutions_of_an_int8_file_run_in_the_faster_kernel(int8: Path) -> None:
    flags = set(describe(seed=0)["cpu_flags"])
    if "avx512_vnni" not in flags or "amx_int8" in flags:
        pytest.skip("the kernel is preferred on CPUs with AVX512-VNNI and without AMX")
    names = kernels(int8.with_suffix(".xml")).values()
    assert "jit_avx512_1x1_I8" in names
    assert not any(name.startswith("brgconv_avx512_1x1_I8") for name in names)


def test_the_preferred_kernel_gives_the_same_answers(int8: Path) -> None:
    preferred = int8.with_suffix(".xml")
    tree = ElementTree.parse(preferred)
    for layer in tree.iterfind("layers/layer"):
        for info in layer.findall("rt_info"):
            layer.remove(info)
    tree.write(preferred.with_stem("own_choice"))
    preferred.with_stem("own_choice").with_suffix(".bin").write_bytes(
        preferred.with_suffix(".bin").read_bytes()
    )
    image = np.random.default_rng(1).normal(size=(2, 3, 64, 64)).astype(np.float32)
    (own,) = load_openvino(preferred.with_stem("own_choice"), 1)(image)
    (ours,) = load_openvino(preferred, 1)(image)
    (exact,) = load_onnxruntime(int8, 1)(image)
    assert np.abs(ours - own).max() <= 0.02 * np.abs(exact).max()


@pytest.mark.usefixtures("exact_int8_sums")
def test_the_preferred_kernel_answers_as_the_graph(int8: Path) -> None:
    image = np.random.default_rng(1).normal(size=(2, 3, 64, 64)).astype(np.float32)
    (ours,) = load_openvino(int8.with_suffix(".xml"), 1)(image)
    (exact,) = load_onnxruntime(int8, 1)(image)
    assert np.abs(ours - exact).max() <= 0.05 * np.abs(exact).max()


def named(path: Path) -> set[str]:
    """Layers of a file that name their kernel, in the one place for it."""
    layers = ElementTree.parse(path).findall("layers/layer")
    found = {layer.get("name", ""): layer.findall("rt_info/attribute") for layer in layers}
    assert all(len(attributes) <= 1 for attributes in found.values())
    return {name for name, attributes in found.items() if attributes}


def pointwise(path: Path) -> set[str]:
    """1x1 convolutions of a file with INT8 weights."""
    found = set()
    for node in openvino_core().read_model(path).get_ordered_ops():
        if node.get_type_name() == "Convolution" and list(node.input(1).get_shape())[2:] == [1, 1]:
            dequantised = node.input(1).get_source_output().get_node()
            if dequantised.get_type_name() == "Multiply":
                found.add(node.get_friendly_name())
    return found


def test_all_pointwise_convolutions_in_int8_name_their_kernel_and_nothing_else(int8: Path) -> None:
    path = int8.with_suffix(".xml")
    assert named(path) == pointwise(path)
    assert len(named(path)) > 1


def test_layers_left_float_name_no_kernel(
    float_graph: Callable[[str], Path], tmp_path: Path
) -> None:
    build_ir(float_graph("official"), "fp32", tmp_path / "fp32.xml")
    assert named(tmp_path / "fp32.xml") == set()
    batches = [np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)]
    model, scheme = onnx.load(float_graph("official")), RECIPES[OPENVINO]
    unit = next(name for name in int8_units(model, scheme) if name.startswith("ffn expand"))
    histograms = observe(model, batches, scheme)
    onnx.save(insert_qdq(model, histograms, scheme, keep_float={unit}), tmp_path / "part.onnx")
    build_ir(tmp_path / "part.onnx", "int8", tmp_path / "part.xml")
    whole = insert_qdq(model, histograms, scheme)
    onnx.save(whole, tmp_path / "whole.onnx")
    build_ir(tmp_path / "whole.onnx", "int8", tmp_path / "whole.xml")
    gone = named(tmp_path / "whole.xml") - named(tmp_path / "part.xml")
    assert len(gone) == int8_units(model, scheme)[unit].layers
    assert named(tmp_path / "part.xml") == pointwise(tmp_path / "part.xml")


def test_a_file_that_cannot_be_marked_is_the_machines_fault(
    int8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ElementTree.ElementTree, "write", full)
    with pytest.raises(MachineError, match="the disk may be full"):
        build_ir(int8, "int8", int8.with_suffix(".xml"))


@pytest.mark.parametrize("content", [b"", b"no network", b"node { }", b"\x08\x0a"])
def test_a_file_that_is_no_ir_is_shown_to_no_reader_of_other_formats(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "other.xml").write_bytes(content)
    with pytest.raises(RuntimeError, match="it is no OpenVINO IR"):
        load_openvino(tmp_path / "other.xml", 1)
