"""Where OpenVINO spends an IR file's time, layer kind by layer kind.

    python benchmarks/where_time_goes.py plain=a.xml ours=b.xml:bf16

Each argument is NAME=FILE, with the type that float layers compute in behind a colon (f32 unless
said). Nodes are those that were executed, as OpenVINO's own counters time them; counting costs
a microsecond or two per node, so the sum exceeds the latency without it.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from cmt.targets.machine import usable_cores
from cmt.targets.openvino import OPENVINO_SETTINGS, openvino_core
from cmt.targets.settings import PRECISION

WARM_UP = 10
RUNS = 100
KINDS = {
    "Convolution": "dense convolutions, k x k",
    "FullyConnected": "1x1 convolutions, linear layers",
    "FullyConnectedQuantizedLegacy": "1x1 convolutions, linear layers",
    "GroupConvolution": "depthwise convolutions",
    "MVN": "normalisations",
    "Transpose": "changes of layout",
    "Reorder": "changes of layout",
}
OTHER = "attention products, softmax, element-wise, quantisers"


def kind(node_type: str, implementation: str) -> str:
    """The row of the table that an executed node counts towards."""
    if node_type == "Convolution" and "1x1" in implementation:
        return KINDS["FullyConnected"]
    return KINDS.get(node_type, OTHER)


def profile(path: Path, precision: str) -> dict[str, tuple[int, float]]:
    """Kind -> (nodes, microseconds per inference), on all usable CPUs."""
    import openvino as ov

    settings: dict[str, Any] = {
        **OPENVINO_SETTINGS,
        PRECISION: precision,
        "INFERENCE_NUM_THREADS": usable_cores(),
        "PERF_COUNT": True,
    }
    compiled = openvino_core().compile_model(path, "CPU", settings)
    request = compiled.create_infer_request()
    shape = tuple(compiled.input(0).shape)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    nodes: dict[str, set[str]] = defaultdict(set)
    times: dict[str, float] = defaultdict(float)
    for run in range(WARM_UP + RUNS):
        request.infer([images])
        for node in request.profiling_info if run >= WARM_UP else ():
            if node.status == ov.ProfilingInfo.Status.EXECUTED:
                row = kind(node.node_type, node.exec_type)
                nodes[row].add(node.node_name)
                times[row] += node.real_time.total_seconds() * 1e6 / RUNS
    return {row: (len(nodes[row]), times[row]) for row in times}


@click.command()
@click.argument("files", nargs=-1, required=True)
def main(files: tuple[str, ...]) -> None:
    """Print microseconds and executed nodes per layer kind for FILES (NAME=FILE[:TYPE])."""
    found = {}
    for argument in files:
        name, _, rest = argument.partition("=")
        path, _, precision = rest.partition(":")
        if not Path(path).is_file():
            raise click.BadParameter(f"{argument}: give NAME=FILE with an .xml file that exists")
        found[name] = profile(Path(path), precision or "f32")
    table = Table("us per inference (nodes)", *found)
    for row in dict.fromkeys([*KINDS.values(), OTHER]):
        cells = (one.get(row, (0, 0.0)) for one in found.values())
        table.add_row(row, *(f"{time:.0f} ({count})" for count, time in cells))
    sums = ([sum(part) for part in zip(*one.values(), strict=True)] for one in found.values())
    table.add_row("sum", *(f"{time:.0f} ({count})" for count, time in sums))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
