"""The graphs and files of a run: what is made from what, and how closely it must follow torch."""

from __future__ import annotations

from dataclasses import dataclass

from export.targets import Target
from measure.runners import SIMULATED
from quantize.recipe import EXPLICIT, OPENVINO


@dataclass(frozen=True)
class Graph:
    """One ONNX file on the way to the targets.

    Attributes:
        source: the graph that it is made from; None for the torch network.
        precision: which tolerance the comparison with torch has.
        runtime: what runs it for that comparison.
        file: its name in the bundle's `model` folder; None if it stays behind.
        rewritten: made from `cmt.rewrite_for_inference`'s network.
        equalised: with channels scaled by `quantize.equalise`, from the calibration images.
        fitted: with `quantize.activation`'s stand-ins for GELU, from the calibration images.
        scheme: INT8, by this one of `quantize.recipe.SCHEMES`, from the calibration images.
        tuned: fine-tuned for this scheme, where the run fine-tunes.
        half: FP16, with FP32 islands where the measured ranges ask for them.
    """

    source: str | None
    precision: str
    runtime: str
    file: str | None
    rewritten: bool = False
    equalised: bool = False
    fitted: bool = False
    scheme: str | None = None
    tuned: str | None = None
    half: bool = False

    @property
    def narrows(self) -> bool:
        """Whether units of it can be left at the precision of its source."""
        return self.half or self.scheme is not None

    @property
    def has_stand_ins(self) -> bool:
        """Whether it has stand-ins for GELU, its own or its source's."""
        return self.fitted or (self.source is not None and GRAPHS[self.source].has_stand_ins)


# The rewrites are for CPUs, where they were measured. What TensorRT makes of them is not known
# without a GPU, and its INT8 recipe was measured on the plain graph. That one's channels are scaled
# for INT8; in the rewritten network, what normalisations scale is in the weights anyway.
GRAPHS = {
    "onnx": Graph(None, "fp32", "onnxruntime", None),
    "simplified": Graph("onnx", "fp32", "onnxruntime", "{name}.onnx"),
    "half": Graph("simplified", "fp16", SIMULATED, "{name}.fp16.onnx", half=True),
    "equalised": Graph(None, "fp32", "onnxruntime", None, equalised=True, tuned=EXPLICIT),
    "equalised-simplified": Graph("equalised", "fp32", "onnxruntime", None),
    "qdq": Graph("equalised-simplified", "int8", "onnxruntime", None, scheme=EXPLICIT),
    "qdq-half": Graph("qdq", "int8", SIMULATED, "{name}.int8.onnx", half=True),
    "rewritten": Graph(None, "fp32", "onnxruntime", None, rewritten=True),
    "rewritten-simplified": Graph("rewritten", "fp32", "onnxruntime", None),
    "fitted": Graph(None, "int8", "onnxruntime", None, rewritten=True, fitted=True, tuned=OPENVINO),
    "fitted-simplified": Graph("fitted", "int8", "onnxruntime", None),
    "fitted-qdq": Graph("fitted-simplified", "int8", "onnxruntime", None, scheme=OPENVINO),
}


def int8_graph(graph: str | None) -> str | None:
    """The Q/DQ graph that a graph is, or is made from; None where there is none."""
    while graph is not None and GRAPHS[graph].scheme is None:
        graph = GRAPHS[graph].source
    return graph


def float_graph(graph: str) -> str:
    """The float32 graph that a graph is, or is made from."""
    while GRAPHS[graph].narrows:
        source = GRAPHS[graph].source
        assert source is not None
        graph = source
    return graph


@dataclass(frozen=True)
class Candidate:
    """One file to build, check and measure: a target at a precision."""

    target: Target
    precision: str

    @property
    def name(self) -> str:
        return f"{self.target.name}/{self.precision}"
