"""Which kernels OpenVINO runs our files with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from openvino import OVAny, Type
from whole_recipe import quantize_onnx

from cmt.errors import MachineError
from cmt.quantize.qdq import insert_qdq, int8_units, observe
from cmt.quantize.recipe import OPENVINO, RECIPES
from cmt.targets.machine import describe
from cmt.targets.onnxruntime import load_onnxruntime
from cmt.targets.openvino import (
    OPENVINO_SETTINGS,
    build_ir,
    float_arithmetic,
    in_force,
    layers_run,
    load_openvino,
    openvino_core,
)
from cmt.targets.settings import as_compiled, settings_of_run


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


# What was made of a file


class MadeUpNode:
    """A node of a runtime model."""

    def __init__(self, layer: str, precision: str, kernel: str = "undef") -> None:
        names = {"layerType": layer, "runtimePrecision": precision, "primitiveType": kernel}
        self._info = {name: OVAny(value) for name, value in names.items()}

    def get_rt_info(self) -> dict[str, OVAny]:
        return self._info


class MadeUpCompiled:
    """A compiled model with these nodes, which says this of its properties."""

    def __init__(
        self, nodes: Sequence[tuple[str, ...]] = (), told: Mapping[str, object] | None = None
    ) -> None:
        self._nodes, self._told = [MadeUpNode(*node) for node in nodes], told or {}

    def get_runtime_model(self) -> MadeUpCompiled:
        return self

    def get_ops(self) -> list[MadeUpNode]:
        return self._nodes

    def get_property(self, name: str) -> object:
        if name not in self._told:
            raise RuntimeError(f"Unsupported property: {name}")
        return self._told[name]


def test_convolutions_and_products_that_run_are_counted_by_type() -> None:
    nodes = [("Convolution", "u8"), ("Convolution", "f16"), ("FullyConnected", "i8")]
    nodes += [("MatMul", "bf16"), ("MatMul", "f32"), ("Reorder", "u8"), ("Input", "f32")]
    assert layers_run(MadeUpCompiled(nodes)) == {"int8": 2, "f16": 1, "bf16": 1, "f32": 1}


def test_a_layer_runs_in_the_type_that_its_kernel_is_given() -> None:
    nodes = [
        ("Convolution", "f16", "brgconv_avx2_1x1_f32"),  # weights stored in half precision
        ("FullyConnected", "i8", "brgemm_avx2_f32"),
        ("Convolution", "u8", "jit_avx2_I8"),
        ("Convolution", "f16", "winograd_acl_f16"),
        ("MatMul", "bf16", "brgemm_avx512_amx_bf16"),
    ]
    assert layers_run(MadeUpCompiled(nodes)) == {"f32": 2, "int8": 1, "f16": 1, "bf16": 1}


def test_settings_are_what_the_compiled_model_says_they_are() -> None:
    told = {"INFERENCE_PRECISION_HINT": Type.f16, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    asked = {**OPENVINO_SETTINGS, "INFERENCE_PRECISION_HINT": "bf16", "NOT_TOLD": 3}
    assert in_force(MadeUpCompiled(told=told), asked) == {
        "INFERENCE_PRECISION_HINT": "f16",
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }


def test_an_int8_file_says_how_many_of_its_layers_run_in_int8(int8: Path) -> None:
    made = load_openvino(int8.with_suffix(".xml"), 1).compiled()
    graph = onnx.load(int8)
    writers = {output: node for node in graph.graph.node for output in node.output}
    weights = {i.name for i in graph.graph.initializer if i.data_type == onnx.TensorProto.INT8}
    dequantised = [
        node
        for node in graph.graph.node
        if node.op_type in ("Conv", "MatMul", "Gemm")
        and (writer := writers.get(node.input[1])) is not None
        and writer.op_type == "DequantizeLinear"
        and writer.input[0] in weights
    ]
    assert made["int8_in_file"] == len(dequantised) > 20
    assert made["layers"]["int8"] >= made["int8_in_file"]
    assert made["settings"] == {**OPENVINO_SETTINGS, "INFERENCE_NUM_THREADS": 1}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_float_file_runs_in_the_type_that_is_in_force(
    precision: str, float_graph: Callable[[str], Path], tmp_path: Path
) -> None:
    build_ir(float_graph("official"), precision, tmp_path / "a.xml")
    made = load_openvino(tmp_path / "a.xml", 1).compiled()
    assert made["int8_in_file"] == 0
    assert set(made["layers"]) == {"f32"}


def test_arithmetic_that_the_cpu_lacks_is_not_reported_as_asked_for(
    float_graph: Callable[[str], Path], tmp_path: Path
) -> None:
    if float_arithmetic("fp16") == "bf16":
        pytest.skip("this CPU has BF16")
    build_ir(float_graph("official"), "fp16", tmp_path / "a.xml")
    asked = {**OPENVINO_SETTINGS, "INFERENCE_PRECISION_HINT": "bf16"}
    found = load_openvino(tmp_path / "a.xml", 1, asked).compiled()["settings"]
    settings, otherwise = as_compiled(settings_of_run(asked, 1, 1), found)
    assert settings["INFERENCE_PRECISION_HINT"] == "f32"
    assert otherwise == {"INFERENCE_PRECISION_HINT": {"asked": "bf16", "in_force": "f32"}}


def test_threads_and_streams_stay_those_that_called_and_what_is_in_force_is_beside_them() -> None:
    asked = settings_of_run({"NUM_STREAMS": "2", "INFERENCE_NUM_THREADS": 8}, 4, 1)
    settings, otherwise = as_compiled(asked, {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 2})
    assert settings == asked
    assert {name: tuple(value.values()) for name, value in otherwise.items()} == {
        "threads": (8, 2),
        "INFERENCE_NUM_THREADS": (8, 2),
        "NUM_STREAMS": ("2", 1),
    }
