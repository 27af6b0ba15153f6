"""The graphs of a run: what is made from what, and how closely it must follow torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cmt.quantize.recipe import EXPLICIT, OPENVINO, TENSOR_CORES
from cmt.quantize.search import Units
from cmt.targets.base import SIMULATED, Target

NONE: Units = frozenset()
PLAIN = "simplified"
"""The graph of the network that was given."""
EXACT = "rewritten-simplified"
"""The graph that activations were fitted to."""
SUFFIX = "~"


@dataclass(frozen=True)
class Graph:
    """One ONNX file on the way to the targets.

    Attributes:
        source: the graph that it is made from; None for the torch network.
        precision: which tolerance the comparison with torch has.
        runtime: what runs it for that comparison.
        file: its name in the bundle's `model` folder; None if it stays behind.
        rewritten: made from `cmt.rewrite_for_inference`'s network.
        tensor_cores: made from `cmt.tensor_cores.fit_tensor_cores`'s network, where equalised with
            its INT8 recipe's products on tokens.
        equalised: with channels scaled by `quantize.equalise`, from the calibration images.
        fitted: with `quantize.activation`'s fitted activations, from the calibration images.
        recipe: INT8, by this one of `quantize.recipe.RECIPES`, from the calibration images.
        tuned: fine-tuned for this recipe, where the run fine-tunes.
        half: FP16, with FP32 islands where the measured ranges ask for them.
    """

    source: str | None
    precision: str
    runtime: str
    file: str | None
    rewritten: bool = False
    tensor_cores: bool = False
    equalised: bool = False
    fitted: bool = False
    recipe: str | None = None
    tuned: str | None = None
    half: bool = False

    @property
    def is_converted(self) -> bool:
        """Whether units of it can be left at the precision of its source."""
        return self.half or self.recipe is not None

    @property
    def has_fitted(self) -> bool:
        """Whether it has fitted activations, its own or its source's."""
        return self.fitted or (self.source is not None and GRAPHS[self.source].has_fitted)


# Two rewrites: one for CPUs, where it was measured, one for TensorRT, chosen by its builder's
# record of layers. For INT8, channels of that one are scaled; in the other, what normalisations
# scale is in the weights anyway.
GRAPHS = {
    "onnx": Graph(None, "fp32", "onnxruntime", None),
    PLAIN: Graph("onnx", "fp32", "onnxruntime", "{name}.onnx"),
    "tiles": Graph(None, "fp32", "onnxruntime", None, tensor_cores=True),
    "tiles-simplified": Graph("tiles", "fp32", "onnxruntime", None),
    "half": Graph("tiles-simplified", "fp16", SIMULATED, "{name}.fp16.onnx", half=True),
    "equalised": Graph(None, "fp32", "onnxruntime", None, equalised=True, tuned=EXPLICIT),
    "equalised-simplified": Graph("equalised", "fp32", "onnxruntime", None),
    "qdq": Graph("equalised-simplified", "int8", "onnxruntime", None, recipe=EXPLICIT),
    "products": Graph(
        None, "fp32", "onnxruntime", None, tensor_cores=True, equalised=True, tuned=TENSOR_CORES
    ),
    "products-simplified": Graph("products", "fp32", "onnxruntime", None),
    "products-qdq": Graph("products-simplified", "int8", "onnxruntime", None, recipe=TENSOR_CORES),
    "products-qdq-half": Graph("products-qdq", "int8", SIMULATED, "{name}.int8.onnx", half=True),
    "rewritten": Graph(None, "fp32", "onnxruntime", None, rewritten=True),
    EXACT: Graph("rewritten", "fp32", "onnxruntime", None),
    "fitted": Graph(None, "int8", "onnxruntime", None, rewritten=True, fitted=True, tuned=OPENVINO),
    "fitted-simplified": Graph("fitted", "int8", "onnxruntime", None),
    "fitted-qdq": Graph("fitted-simplified", "int8", "onnxruntime", None, recipe=OPENVINO),
}


@dataclass(frozen=True)
class Candidate:
    """One file to build, check and measure: a target at a precision."""

    target: Target
    precision: str

    @property
    def name(self) -> str:
        return f"{self.target.name}/{self.precision}"

    @property
    def graph(self) -> str:
        """The graph that it is built from."""
        return self.target.graphs[self.precision]


def chain(graph: str) -> Iterator[str]:
    """A graph, what it is made from, and so on."""
    name: str | None = graph
    while name is not None:
        yield name
        name = GRAPHS[name].source


def int8_graph(graph: str) -> str | None:
    """The Q/DQ graph that a graph is, or is made from; None where there is none."""
    return next((name for name in chain(graph) if GRAPHS[name].recipe is not None), None)


def float_graph(graph: str) -> str:
    """The float32 graph that a graph is, or is made from."""
    return next(name for name in chain(graph) if not GRAPHS[name].is_converted)


def converted_graph(candidate: Candidate) -> str | None:
    """The graph of a candidate whose units can go back; None where no graph decides."""
    name = candidate.graph
    source = GRAPHS[name].source
    if source is not None and GRAPHS[source].is_converted:
        return source
    return name if GRAPHS[name].is_converted else None


def suffix(units: Units) -> str:
    """What tells the stages of a file with these units in float from others of its name."""
    return f"{SUFFIX}{short_hash(sorted(units))}" if units else ""


def short_hash(content: Any) -> str:
    """Twelve hexadecimal digits for a stage's name."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def stage_name(graph: str, units: Units, end: str = "") -> str:
    """A graph's own part of its stage's name."""
    return f"{graph}{end}{suffix(units) if GRAPHS[graph].is_converted else ''}"
