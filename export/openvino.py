"""OpenVINO IR files from an ONNX graph."""

from __future__ import annotations

import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from cmt.errors import MachineError
from measure.runners import OPENVINO_SETTINGS, PRECISION
from measure.sessions import openvino_core

if TYPE_CHECKING:
    import openvino as ov


POINTWISE_KERNELS = "cpu:brgconv_avx512_amx_1x1,cpu:jit_avx512_1x1"
"""For 1x1 convolutions in INT8, the first that the CPU has; with neither, OpenVINO's own choice.

Without AMX it would take `brgconv_avx512_1x1`, with which CMT-Ti takes 1.00 to 1.06 times as long
(median of six runs 1.03) and CMT-S 1.00 to 1.02 times."""


def missing() -> str | None:
    """What to install, or None where OpenVINO is present."""
    if find_spec("openvino") is None:
        return "OpenVINO is not installed: pip install 'cmt-export[export]'"
    return None


def build_ir(graph: Path, precision: str, path: Path) -> dict[str, Any]:
    """Write `path` (.xml) and its .bin; returns what they were built with and how to run them.

    Args:
        graph: ONNX file; for int8, one with Q/DQ in it.
        precision: fp16 stores the weights in half precision.

    Raises:
        MachineError: the files cannot be written.
    """
    import openvino as ov

    # read_model, for convert_model reports usage.
    model = openvino_core().read_model(graph)
    _name_by_place(model)
    try:
        ov.save_model(model, path, compress_to_fp16=precision == "fp16")
        if precision == "int8":
            _prefer_pointwise_kernels(path)
    except (RuntimeError, OSError) as error:  # OpenVINO does not say why
        raise MachineError(f"OpenVINO cannot write {path} (the disk may be full)") from error
    settings = {**OPENVINO_SETTINGS, PRECISION: float_arithmetic(precision)}
    return {
        "built_with": {"openvino": version("openvino")},
        "built_for": ["CPU"],
        "settings": settings,
    }


def _prefer_pointwise_kernels(path: Path) -> None:
    """Write `POINTWISE_KERNELS` into an IR file, where the plugin reads it from each convolution.

    Into the file, since OpenVINO's Python sets no attribute that a model is saved with. Float
    convolutions, whose weights are constants and not dequantised, stay as they are.
    """
    tree = ElementTree.parse(path)
    layers = {layer.get("id"): layer for layer in tree.iterfind("layers/layer")}
    for edge in tree.iterfind("edges/edge[@to-port='1']"):
        weight, layer = layers[edge.get("from-layer")], layers[edge.get("to-layer")]
        if layer.get("type") != "Convolution" or weight.get("type") != "Multiply":
            continue
        _, port = layer.iterfind("input/port")
        if [dimension.text for dimension in port.iterfind("dim")][2:] == ["1", "1"]:
            info = ElementTree.Element("rt_info")
            attribute = {"name": "primitives_priority", "version": "0", "value": POINTWISE_KERNELS}
            ElementTree.SubElement(info, "attribute", attribute)
            layer.insert(1, info)  # behind the layer's data, where OpenVINO writes it
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _name_by_place(model: ov.Model) -> None:
    """Name by its place in the graph what has no name but its type and numbers.

    OpenVINO's own names count all nodes that the process has ever made, and ONNX nodes that are
    called alike give way to them: the same graph would give other bytes in another process.
    """
    for place, node in enumerate(model.get_ordered_ops()):
        if re.fullmatch(r"[A-Z][A-Za-z]*(_\d+)+", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}.{place}")


def float_arithmetic(precision: str) -> str:
    """In which type this CPU should compute what a file of this precision leaves float.

    BF16 where the CPU has instructions for it, except for fp32, which means what it says. What
    INT8 leaves float is bound by memory for the most part, which BF16 halves.
    """
    capabilities = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if precision != "fp32" and "BF16" in capabilities else "f32"
