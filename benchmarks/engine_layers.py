"""What TensorRT-RTX makes of a graph: in which types its products run, and what fills the engine.

    python -m benchmarks.engine_layers BUNDLE [--gpu-arch sm89]

Read from the layer information in the builder's own log, which needs no GPU; the engine inspector
would need one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from cmt.bundle.reader import open_bundle

PRODUCTS = ("gemm", "correlation", "runtime_fusion")
"""Kinds of layers that multiply matrices: linear layers, convolutions, fused attention."""
_LAYER = re.compile(r"\s*Name: (\S+), LayerType: (\w+), Inputs: \[(.*)")
_TYPE = re.compile(r"Datatype: (\w+)")
_SOURCE = re.compile(rb"[\t\n -~]{4096,}")
"""Text of some length; weights hold none."""


@dataclass(frozen=True)
class Layer:
    """A layer of an engine: what it is, and the types of its first input and output."""

    kind: str
    reads: str
    writes: str


@dataclass(frozen=True)
class Engine:
    """An engine built for one compute capability, with its layers; sizes in bytes."""

    layers: list[Layer]
    size: int
    kernels: int
    source: int

    @property
    def products(self) -> Counter[tuple[str, str, str]]:
        """(kind, type read, type written) -> how many layers."""
        found = (x for x in self.layers if x.kind in PRODUCTS)
        return Counter((x.kind, x.reads, x.writes) for x in found)


def build(onnx_path: Path, arch: str, batch: int = 1) -> Engine:
    """Build an engine with TensorRT-RTX, keeping the builder's log.

    Args:
        batch: of a graph that takes any.
    """
    import tensorrt_rtx as trt

    lines: list[str] = []

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, message: str) -> None:
            lines.extend(message.splitlines())

    logger = Log()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_path.read_bytes()):
        raise click.ClickException(f"TensorRT-RTX cannot read {onnx_path}")
    source = network.get_input(0)
    if source.shape[0] == -1:
        source.shape = (batch, *source.shape[1:])
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.__members__[arch.upper()], 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    plan = bytes(builder.build_serialized_network(network, config))
    texts = _SOURCE.findall(plan)
    kernels = sum(b"#include" in text for text in texts)
    return Engine(list(_layers(lines)), len(plan), kernels, sum(map(len, texts)))


def _layers(lines: list[str]) -> Iterator[Layer]:
    for line in lines:
        if (match := _LAYER.match(line)) is None:
            continue
        inputs, _, rest = match[3].partition("Outputs: [")
        read, written = _TYPE.search(inputs), _TYPE.search(rest)
        if read is not None and written is not None:
            yield Layer(match[2], read[1], written[1])


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--gpu-arch", default="sm89", show_default=True)
def main(bundle: Path, gpu_arch: str) -> None:
    """Print what becomes of every ONNX graph in a bundle."""
    batch = open_bundle(bundle).manifest["input"]["shape"][0]
    for path in sorted((bundle / "model").glob("*.onnx")):
        engine = build(path, gpu_arch, batch)
        click.echo(
            f"{path.name}, {path.stat().st_size / 1e6:.1f} MB: engine {engine.size / 1e6:.1f} MB, "
            f"{engine.source / 1e6:.1f} MB of it text with the source of {engine.kernels} kernels"
        )
        for (kind, reads, writes), count in engine.products.most_common():
            click.echo(f"  {count:4} {kind:15} {reads} -> {writes}")


if __name__ == "__main__":
    main()
