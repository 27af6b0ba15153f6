"""`cmt-export` that notes the stages it makes in LOG, and dies in the stage VICTIM.

Run by tests/support/real_runs.py with these names in `GIVEN`:
    ARGUMENTS: of the command.
    MOMENT: `within` the stage, with its files written but not yet its marker, or `after` it.
    SIGNAL: what it sends itself.
    TINY: a network of a few thousand weights, under the name `tiny`.
    ERRORS: a file in place of standard error.
    LARGEST_FILE: bytes that no file may exceed; None for no limit.
    MEMORY: bytes that may be had beyond what the imports took; None for no limit.
    EXPORTED: where torch's exporter is asked once for each network; None asks it each time.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from exported_once import export_once
from made_up_timings import measure_nothing

from cmt.variants import VARIANTS

GIVEN: dict[str, Any] = globals()["GIVEN"]
VARIANTS["tiny"] = GIVEN["TINY"]
os.dup2(os.open(GIVEN["ERRORS"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
if GIVEN["LARGEST_FILE"] is not None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (GIVEN["LARGEST_FILE"],) * 2)
from cmt.bundle import placing  # noqa: E402
from cmt.commands import main  # noqa: E402 - its options name the variants
from cmt.export import file_maker, graph_maker  # noqa: E402
from cmt.export.stages import Stages  # noqa: E402

whole_run, place = Stages.run, placing.place


def die(stage: str, moment: str) -> None:
    if (stage, moment) == (GIVEN["VICTIM"], GIVEN["MOMENT"]):
        os.kill(os.getpid(), GIVEN["SIGNAL"])


def noting_run(
    self: Stages, name: str, inputs: dict[str, Any], make: Callable[[Path], None], after: Any = ()
) -> Path:
    def noting(folder: Path) -> None:
        with GIVEN["LOG"].open("a") as file:
            file.write(f"{name}\n")
        make(folder)
        die(name, "within")

    folder = whole_run(self, name, inputs, noting, after)
    die(name, "after")
    return folder


def noting_place(*arguments: Any) -> None:
    die("bundle", "within")
    place(*arguments)
    die("bundle", "after")


if GIVEN["EXPORTED"] is not None:
    graph_maker.export_onnx = export_once(GIVEN["EXPORTED"])
file_maker.measure_alternately = measure_nothing
Stages.run = noting_run  # type: ignore[method-assign]
placing.place = noting_place
sys.argv = ["cmt-export", *GIVEN["ARGUMENTS"]]
if GIVEN["MEMORY"] is not None:
    allowed = psutil.Process().memory_info().vms + GIVEN["MEMORY"]
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
main.run("cmt-export")
