"""Which kernels OpenVINO runs our files with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from whole_recipe import quantize_onnx

from export.openvino import build_ir
from measure.environment import describe
from measure.runners import load_onnxruntime, load_openvino
from measure.sessions import openvino_core
from quantize.recipe import OPENVINO, SCHEMES


@pytest.fixture
def int8(float_graph: Callable[[str], Path], tmp_path: Path) -> Path:
    """An INT8 graph in ONNX, its OpenVINO file beside it."""
    batches = [np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)]
    graph = quantize_onnx(onnx.load(float_graph("official")), batches, SCHEMES[OPENVINO])
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
    assert np.abs(ours - own).max() <= 0.02 * np.abs(own).max()
    assert np.abs(ours - exact).max() <= 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(("precision", "marked"), [("fp32", False), ("int8", True)])
def test_only_int8_files_name_kernels(
    precision: str, marked: bool, int8: Path, float_graph: Callable[[str], Path], tmp_path: Path
) -> None:
    graph = int8 if precision == "int8" else float_graph("official")
    build_ir(graph, precision, tmp_path / "file.xml")
    layers = ElementTree.parse(tmp_path / "file.xml").findall("layers/layer")
    named = [layer for layer in layers if layer.find("rt_info/attribute") is not None]
    assert {layer.get("type") for layer in named} == ({"Convolution"} if marked else set())
    assert len(named) < len([layer for layer in layers if layer.get("type") == "Convolution"])
