"""OpenVINO's usage reports are not sent: not even its classes for them are used."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

PROGRAM = """
    import socket
    import sys
    from pathlib import Path

    import openvino as ov
    from openvino_telemetry.backend.backend_ga4 import GA4Backend
    from openvino_telemetry.main import Telemetry

    from export.openvino import build_ir
    from measure.runners import load_openvino

    used = []

    def watch(owner, name):
        setattr(owner, name, lambda *_, **__: used.append(name))

    for name in ("init", "start_session", "send_event", "send_error"):
        watch(Telemetry, name)
    watch(GA4Backend, "send")
    watch(socket.socket, "connect")
    graph, folder = Path(sys.argv[1]), Path(sys.argv[2])
    for precision in ("fp32", "fp16"):
        path = folder / f"a.{precision}.xml"
        build_ir(graph, precision, path)
        load_openvino(path, 1)
    print("ours", used)
    ov.convert_model(graph)
    print("theirs", used)
"""


def test_no_usage_is_reported(float_graph: Callable[[str], Path], tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    result = subprocess.run(
        [*command, str(float_graph("official")), str(tmp_path)],
        env={**os.environ, "HOME": str(tmp_path)},  # whatever this user once agreed to
        capture_output=True,
        text=True,
        check=True,
    )
    ours, theirs = result.stdout.strip().splitlines()[-2:]
    assert ours == "ours []"
    assert theirs != "theirs []", "the watch must see what convert_model reports"
