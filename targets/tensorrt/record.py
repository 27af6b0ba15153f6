"""What TensorRT-RTX made of a graph, launch by launch, as its builder's log tells without a GPU.

A launch is a layer of the engine; signals and waits between streams are counted apart. Bytes are
those of the tensors that launches read and write, a tensor that one launch reads twice counted
once. No time is measured: `predict` is a roofline, and whatever comes from it is to be called
predicted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import prod
from pathlib import Path
from typing import Any

from cmt.errors import GateError, InputError
from cmt.targets.tensorrt.build import interrupts_after, make_config
from cmt.targets.tensorrt.library import import_library

_LAYER = re.compile(
    r"\s*Name: (?P<name>\S+), LayerType: (?P<kind>\w+), Inputs: \[(?P<reads>.*?)\], "
    r"Constants: \[(?P<constants>.*?)\], Outputs: \[(?P<writes>.*?)\], TacticName: (?P<rest>.*)"
)
_TENSOR = re.compile(r"\{ Name: (\S+), Dimensions: \[([\d,]*)\], .*?Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_SIZES = {"Float": 4, "Int32": 4, "Half": 2, "BFloat16": 2, "Int8": 1, "FP8": 1, "UInt8": 1}
_SIZES |= {"Bool": 1, "Int64": 8}
_SYNCS = ("signal", "wait")
_MOVES = {"Tran", "Resh", "Move", "Slic", "Conc", "Repl"}
"""Parts of the name of a generated kernel that compute nothing."""


@dataclass(frozen=True)
class Tensor:
    """What a launch reads or writes."""

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * _SIZES[self.kind]


@dataclass(frozen=True)
class Launch:
    """A layer of an engine; `nodes` are the ONNX nodes that it computes."""

    name: str
    kind: str
    reads: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    nodes: tuple[str, ...]

    @property
    def moved(self) -> int:
        """Bytes read and written, constants left out."""
        return _bytes(self.reads) + _bytes(self.writes)

    @property
    def is_copy(self) -> bool:
        """Whether it only moves what is there."""
        parts = re.findall(r"[A-Z][a-z]+", self.name.removeprefix("__myl_"))
        return self.kind == "kgen" and bool(parts) and set(parts) <= _MOVES

    @property
    def macs(self) -> int:
        """Multiply-adds of matrix products and convolutions; of others, none are counted."""
        if "_mha" in self.name:
            keys = self.reads[2].shape[-2]
            return keys * (prod(self.reads[0].shape) + prod(self.writes[0].shape))
        if self.kind == "correlation" or "_Corr" in self.name:
            weight = next(c.shape for c in self.constants if len(c.shape) > 2)
            return prod(self.writes[0].shape) * prod(weight[1:])
        if self.kind == "gemm" or "_Fc" in self.name:
            return prod(self.writes[0].shape) * _inner(self)
        return 0


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.size for tensor in {t.name: t for t in tensors}.values())


def _inner(launch: Launch) -> int:
    """The dimension that a matrix product sums over: what two operands share beside the output."""
    operands = [t.shape[-2:] for t in (*launch.reads, *launch.constants) if len(t.shape) > 1]
    out = launch.writes[0].shape[-2:]
    for left, right in permutations(operands, 2):
        for (m, inner), (k, n) in ((a, b) for a in _ways(left) for b in _ways(right)):
            if inner == k and (m, n) == out:
                return k
    raise InputError(f"{launch.name} is no matrix product that this program knows")


def _ways(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return shape, shape[::-1]


@dataclass(frozen=True)
class Record:
    """All of an engine for one batch; `syncs` are signals and waits."""

    launches: tuple[Launch, ...]
    syncs: int

    @property
    def moved(self) -> int:
        """Bytes that launches read and write, constants left out."""
        return sum(launch.moved for launch in self.launches)

    @property
    def constants(self) -> int:
        """Bytes of constants that launches read."""
        return sum(_bytes(launch.constants) for launch in self.launches)

    @property
    def copies(self) -> int:
        """Launches that only move what is there."""
        return sum(launch.is_copy for launch in self.launches)

    @property
    def macs(self) -> dict[str, int]:
        """Multiply-adds by the type that products read."""
        found: Counter[str] = Counter()
        for launch in self.launches:
            if launch.macs:
                found[launch.reads[0].kind] += launch.macs
        return dict(found)

    @property
    def products(self) -> Counter[tuple[str, str, str]]:
        """(kind, type read, type written) -> how many launches that multiply matrices."""
        found = (x for x in self.launches if x.macs)
        return Counter((x.kind, x.reads[0].kind, x.writes[0].kind) for x in found)


@dataclass(frozen=True)
class Rates:
    """What a GPU does at most, from its maker's data sheet.

    Attributes:
        bandwidth: of its memory, bytes a second.
        macs: multiply-adds a second by type, dense, FP16's summed in FP32.
        launch: seconds from one kernel's end to the next one's work, assumed and not measured.
    """

    name: str
    source: str
    bandwidth: float
    macs: dict[str, float]
    launch: float = 2e-6


GPUS = {
    "sm80": Rates(
        "A100 40GB",
        "NVIDIA, A100 Tensor Core GPU data sheet",
        1555e9,
        {"Half": 156e12, "Int8": 312e12, "Float": 9.75e12},
    ),
    "sm86": Rates(
        "A10",
        "NVIDIA, A10 Tensor Core GPU data sheet",
        600e9,
        {"Half": 62.5e12, "Int8": 125e12, "Float": 15.6e12},
    ),
    "sm89": Rates(
        "L4",
        "NVIDIA, L4 Tensor Core GPU data sheet, its figures with sparsity halved",
        300e9,
        {"Half": 60.5e12, "Int8": 121e12, "FP8": 121e12, "Float": 15.1e12},
    ),
}
"""By compute capability, a GPU that times are predicted for."""


def predict(record: Record, rates: Rates) -> float:
    """Seconds of one inference by a roofline: launches one after the other, each bound by memory,
    constants included, or by its products. Nothing is measured."""
    return sum(
        rates.launch
        + max(
            (launch.moved + _bytes(launch.constants)) / rates.bandwidth,
            launch.macs / rates.macs[launch.reads[0].kind] if launch.macs else 0.0,
        )
        for launch in record.launches
    )


def read_record(onnx_path: Path, arch: str, batch: int = 1) -> Record:
    """Build an engine for one compute capability with TensorRT-RTX, for its layers alone.

    Args:
        batch: of a graph that takes any.

    Raises InputError where TensorRT-RTX is missing, cannot read the graph or does not build for
    this GPU, GateError when the build fails.
    """
    trt: Any = import_library("tensorrt_rtx")
    lines: list[str] = []
    logger = _make_logger(trt, lines)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_path.read_bytes()):
        raise InputError(f"TensorRT-RTX cannot read {onnx_path}")
    source = network.get_input(0)
    if source.shape[0] == -1:
        source.shape = (batch, *source.shape[1:])
    config = make_config(builder)
    known = trt.ComputeCapability.__members__
    capability = known.get(arch.upper())
    if capability is None:
        raise InputError(f"tensorrt_rtx {trt.__version__} does not build for {arch}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(capability, 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    with interrupts_after():
        engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise GateError(f"tensorrt_rtx built no engine from {onnx_path}")
    return parse_record(lines)


def _make_logger(trt: Any, lines: list[str]) -> Any:
    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            lines.extend(message.splitlines())

    return Log()


def parse_record(lines: Sequence[str]) -> Record:
    """The record in the lines of a builder's log; raises InputError where it holds none."""
    layers = list(_layers(lines))
    launches = tuple(layer for layer in layers if layer.kind not in _SYNCS)
    if not launches:
        raise InputError("the builder's log has no layers: this TensorRT-RTX writes another one")
    return Record(launches, len(layers) - len(launches))


def _layers(lines: Sequence[str]) -> Iterator[Launch]:
    for line in lines:
        match = _LAYER.match(line)
        if match is not None:
            reads, constants, writes = (
                tuple(_tensors(match[part])) for part in ("reads", "constants", "writes")
            )
            nodes = tuple(_NODE.findall(match["rest"]))
            yield Launch(match["name"], match["kind"], reads, constants, writes, nodes)


def _tensors(text: str) -> Iterator[Tensor]:
    for name, dimensions, kind in _TENSOR.findall(text):
        if kind not in _SIZES:
            raise InputError(f"the builder's log has tensors of {kind}, whose size is not known")
        yield Tensor(name, tuple(int(d) for d in dimensions.split(",") if d), kind)
