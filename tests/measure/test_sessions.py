"""What the runtimes leave behind in the process that loads files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from export.openvino import build_ir

TWO_FILES_THEN_AN_INTERRUPT = """
import os
import signal
import sys
from pathlib import Path

from measure.runners import load_openvino

first, second = (load_openvino(Path(sys.argv[1]), 1) for _ in range(2))
del first
del second
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_after_openvino_files_were_dropped_is_no_crash(
    float_graph: Callable[[str], Path], tmp_path: Path
) -> None:
    build_ir(float_graph("official"), "fp32", tmp_path / "file.xml")
    command = [sys.executable, "-c", TWO_FILES_THEN_AN_INTERRUPT, tmp_path / "file.xml"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.stdout, result.returncode) == ("interrupted\n", 0), result.stderr
