"""Exports of a small network on the quiet machine and beside busy loops: do speed-ups hold?

    python tests/endurance/busy_machine.py [--runs 10] [--loops 2] [--work DIR] [--out FILE.json]

Two exports on the machine as it is say what the ratios are: their intervals must overlap for every
file. Then come `--runs` exports beside `--loops` processes that do nothing but count. None of
those may name a speed-up whose interval does not hold the quiet ratio; a report may say "busy"
instead and name none. Nothing else may run meanwhile. Prints a line for each export; the exit
status is 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cmt.targets.machine import describe

OPTIONS = (
    "--variant tiny --weights random --img-size 32 --target openvino --target onnxruntime --fp16 "
    "--val-count 16 --max-drop 100 --gate-minutes 0 --no-tune --bench-seconds 2"
)
# The command and its workers learn of the small network as they start.
STARTUP = """
from cmt.variants import VARIANTS, Variant
VARIANTS["tiny"] = Variant(
    "tiny", 32, 8, (8, 16, 32, 64), (1, 1, 2, 1), {"official": 3.6, "flyegle": 3.6}
)
"""
Ratios = dict[str, dict[str, Any] | None]


def export(work: Path) -> Ratios:
    """The speed-ups of a report by file and what they are against; None where it is busy."""
    (work / "startup").mkdir(parents=True, exist_ok=True)
    (work / "startup" / "sitecustomize.py").write_text(STARTUP)
    subprocess.run(
        [Path(sys.executable).with_name("cmt-export"), *OPTIONS.split(), "--force", "--out", "b"],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(work / "startup")},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    report = json.loads((work / "b" / "report.json").read_text())
    return {
        f"{row['target']} {row['precision']} {field}": row[field]
        for row in report["results"]
        for field in ("speedup_vs_baseline", "speedup_vs_fp32_graph")
        if row["precision"] != "fp32" or field == "speedup_vs_baseline"
    }


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()


def told(ratios: Ratios) -> str:
    return "; ".join(f"{name} {_figures(one)}" for name, one in ratios.items())


def _figures(one: dict[str, Any] | None) -> str:
    return "busy" if one is None else "{:.2f} [{:.2f}, {:.2f}]".format(one["ratio"], *one["ci95"])


def broken(quiet: list[Ratios], busy: list[Ratios]) -> Iterator[str]:
    """Each promise that was not kept."""
    first, second = quiet
    for name in first:
        one, other = first[name], second[name]
        if one is None or other is None:
            yield f"{name}: the machine was not quiet to begin with"
            continue
        if max(one["ci95"][0], other["ci95"][0]) > min(one["ci95"][1], other["ci95"][1]):
            yield f"{name}: two quiet intervals do not overlap"
        middle = (one["ratio"] + other["ratio"]) / 2
        for number, run in enumerate(busy, 1):
            found = run[name]
            if found is not None and not found["ci95"][0] <= middle <= found["ci95"][1]:
                yield f"{name}: export {number} beside loops has no {middle:.2f} in its interval"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--loops", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/busy_machine"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    quiet, busy = [], []
    for _ in range(2):
        quiet.append(export(arguments.work))
        print(f"quiet: {told(quiet[-1])}", flush=True)
    for _ in range(arguments.runs):
        with busy_loops(arguments.loops):
            busy.append(export(arguments.work))
        print(f"beside {arguments.loops} loops: {told(busy[-1])}", flush=True)
    failures = list(broken(quiet, busy))
    print("\n".join(failures) or "every promise was kept")
    if arguments.out is not None:
        machine = describe(seed=0)
        content = {
            "cpu": machine["cpu"],
            "cores": machine["cores"],
            "loops": arguments.loops,
            "quiet": quiet,
            "busy": busy,
            "failures": failures,
        }
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
