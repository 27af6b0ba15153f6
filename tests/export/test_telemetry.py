"""No usage is reported: nothing that is imported or run here so much as looks a host up."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

WATCH = """
    import os
    import sys

    def watch(event, _):  # in threads and forked processes too
        if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect"):
            os.write(1, b"network ")

    sys.addaudithook(watch)
"""
OURS = """
    from pathlib import Path

    from cmt.targets.openvino import build_ir
    from cmt.targets.onnxruntime import load_onnxruntime
    from cmt.targets.openvino import load_openvino

    graph, folder = Path(sys.argv[1]), Path(sys.argv[2])
    for precision in ("fp32", "fp16"):
        path = folder / f"a.{precision}.xml"
        build_ir(graph, precision, path)
        load_openvino(path, 1)
    load_onnxruntime(graph, 1)
"""
TIMED = """
    from cmt.measure.worker import LOADERS, Path

    for runtime, path in zip(("onnxruntime", "openvino"), sys.argv[1:], strict=True):
        LOADERS[runtime](Path(path), 1)
"""


def output_of(program: str, *arguments: Path, home: Path) -> str:
    command = [sys.executable, "-c", textwrap.dedent(WATCH + program), *map(str, arguments)]
    result = subprocess.run(
        command,
        env={"HOME": str(home)},  # whatever this user once agreed to, and in CI as elsewhere
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


def test_no_usage_is_reported(float_graph: Callable[[str], Path], tmp_path: Path) -> None:
    graph = float_graph("official")
    assert output_of(OURS, graph, tmp_path, home=tmp_path) == ""
    # The process that times a file imports little.
    assert output_of(TIMED, graph, tmp_path / "a.fp32.xml", home=tmp_path) == ""
    # By itself, OpenVINO reports that it is imported.
    assert "network" in output_of("    import openvino\n", home=tmp_path)
