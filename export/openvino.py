"""OpenVINO IR files from the simplified ONNX graph."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from calib_data.prepared import PreparedImages
from measure.runners import OPENVINO_SETTINGS


def missing() -> str | None:
    """What to install, or None where OpenVINO is present."""
    if find_spec("openvino") is None:
        return "OpenVINO is not installed: pip install 'cmt-export[export]'"
    return None


def build_ir(
    graph: Path, precision: str, calibration: PreparedImages | None, batch: int, path: Path
) -> dict[str, Any]:
    """Write `path` (.xml) and its .bin; returns what they were built with.

    fp16 stores the weights in half precision; the CPU computes in float32 all the same.
    int8 needs the calibration images.
    """
    import openvino as ov

    # read_model, for convert_model reports usage.
    model = ov.Core().read_model(graph)
    if precision == "int8":
        from quantize.openvino_int8 import quantize_ir

        assert calibration is not None
        model = quantize_ir(model, calibration, batch)
    ov.save_model(model, path, compress_to_fp16=precision == "fp16")
    built = {"openvino": version("openvino")}
    if precision == "int8":
        built["nncf"] = version("nncf")
    return {"built_with": built, "built_for": ["CPU"], "settings": OPENVINO_SETTINGS}
