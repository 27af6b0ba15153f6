"""Real runs of `cmt-export` with a tiny network, in processes that may be killed or kept short."""

from __future__ import annotations

import multiprocessing
import os
import runpy
from pathlib import Path
from typing import Any

from tiny_variant import TINY

SCRIPT = Path(__file__).parents[1] / "export" / "killed_run.py"

# Children of a server that has the heavy imports done already, and has run nothing with them: those
# that exporting makes on the way too, which may fail in their own ways where memory is short.
PROCESSES = multiprocessing.get_context("forkserver")
IMPORTS = "torch torch._dynamo onnx onnxscript onnxsim onnxruntime openvino jsonschema"
PROCESSES.set_forkserver_preload([*IMPORTS.split(), "cmt.export.pipeline"])


def run_here(
    arguments: list[str],
    log: Path,
    victim: str | None = None,
    moment: str = "",
    number: int = 0,
    errors: str | Path = os.devnull,
    largest_file: int | None = None,
    memory: int | None = None,
    exported: Path | None = None,
) -> None:
    """Run killed_run.py, whose names these are, in this process, which it ends."""
    given: dict[str, Any] = {
        "ARGUMENTS": arguments,
        "LOG": log,
        "VICTIM": victim,
        "MOMENT": moment,
        "SIGNAL": number,
        "TINY": TINY,
        "ERRORS": errors,
        "LARGEST_FILE": largest_file,
        "MEMORY": memory,
        "EXPORTED": exported,
    }
    runpy.run_path(str(SCRIPT), {"GIVEN": given})


def status_of(*given: Any, **more: Any) -> int:
    """Exit status of `run_here` in a process of its own; negative: what signal ended it.

    One that takes longer than two minutes is killed, and fails the test.
    """
    process = PROCESSES.Process(target=run_here, args=given, kwargs=more)
    process.start()
    process.join(120)
    is_late = process.is_alive()
    process.kill()
    process.join()
    assert not is_late, "the run did not end"
    assert process.exitcode is not None
    return process.exitcode
