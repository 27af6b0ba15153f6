"""The graphs and files of a run: what is made from what, and how closely it must follow torch."""

from __future__ import annotations

from dataclasses import dataclass

from export.targets import Target
from measure.runners import SIMULATED


@dataclass(frozen=True)
class Graph:
    """One ONNX file on the way to the targets.

    Attributes:
        source: the graph that it is made from; None for the torch network.
        precision: which tolerance the comparison with torch has.
        runtime: what runs it for that comparison.
        file: its name in the bundle's `model` folder; None if it stays behind.
        calibrated: its content depends on the calibration images.
        half: FP16, with FP32 islands where the measured ranges ask for them.
    """

    source: str | None
    precision: str
    runtime: str
    file: str | None
    calibrated: bool = False
    half: bool = False


GRAPHS = {
    "onnx": Graph(None, "fp32", "onnxruntime", None),
    "simplified": Graph("onnx", "fp32", "onnxruntime", "{name}.onnx"),
    "half": Graph("simplified", "fp16", SIMULATED, "{name}.fp16.onnx", half=True),
    "qdq": Graph("simplified", "int8", "onnxruntime", None, calibrated=True),
    "qdq-half": Graph("qdq", "int8", SIMULATED, "{name}.int8.onnx", half=True),
}


@dataclass(frozen=True)
class Candidate:
    """One file to build, check and measure: a target at a precision."""

    target: Target
    precision: str

    @property
    def name(self) -> str:
        return f"{self.target.name}/{self.precision}"
