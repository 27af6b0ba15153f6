"""`kill -9` at random moments of the main job, each followed by `--resume`.

    python tests/endurance/killed_exports.py [--count 50] [--seed 0] [--work DIR] [--out FILE.json]

The job is `cmt-export --variant ti --target openvino --int8` with few images. The command's own
process alone is killed, as the kernel does where memory is short. After each kill there may be
no bundle or a complete one, which opens and verifies; no worker lives on and no temporary file
is left. `--resume` must then end with a bundle that opens, verifies, and has the same files, byte
for byte, as the run that was not killed. Prints a line for each kill.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from measure.bundle import file_entries, open_bundle
from measure.golden import verify

ROOT = Path(__file__).parents[2]
OPTIONS = "--variant ti --target openvino --int8 --val-count 16 --calib-count 8 --threads 1"
HANG_SECONDS = 900
"""A whole run takes a minute; where the machine is busy with other work, several."""


class Job:
    """The command on one output folder, in a process that can be killed."""

    def __init__(self, work: Path) -> None:
        self.bundle = work / "bundle"
        self.temporary = work / "temporary"
        shutil.rmtree(work, ignore_errors=True)
        self.temporary.mkdir(parents=True)

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        code = "import cli; cli.export_command()"
        options = [*OPTIONS.split(), "--bench-seconds", "0.2"]
        return subprocess.Popen(
            [sys.executable, "-c", code, *options, "--out", str(self.bundle), *more],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(self.temporary)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def stages(self) -> list[str]:
        """Names of the finished stages of a run that was stopped."""
        partial = self.bundle.with_name(f".{self.bundle.name}.partial")
        keys = sorted(partial.rglob("stage.key"), key=lambda path: path.stat().st_mtime)
        folders = [path.parent.relative_to(partial).as_posix() for path in keys]
        return [folder for folder in folders if not folder.endswith(".unfinished")]

    def leftovers(self) -> list[str]:
        """Temporary and hidden files that should not be there."""
        places = [*self.temporary.iterdir(), *self.bundle.parent.glob(".*")]
        return [path.name for path in places]

    def problem(self) -> str | None:
        """What is wrong with the bundle; None if it opens and answers as it should."""
        try:
            checks = list(verify(open_bundle(self.bundle), 1))
        except Exception as error:  # whatever it is, it is the finding
            return f"{type(error).__name__}: {error}"
        failed = [check.name for check in checks if check.passed is not True]
        return f"not verified: {', '.join(failed)}" if failed else None


def files_of(bundle: Path) -> dict[str, str]:
    """sha256 by path of all files but the reports, which hold times."""
    manifest = open_bundle(bundle).manifest
    reports = {entry["path"] for entry in manifest["reports"]}
    return {e["path"]: e["sha256"] for e in file_entries(manifest) if e["path"] not in reports}


def kill(job: Job, after: float) -> tuple[list[str], list[str]] | None:
    """Start the job and kill it; its findings and finished stages, or None where it ended before.

    Raises:
        RuntimeError: the job failed by itself.
    """
    process = job.start()
    try:
        _, errors = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        children = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    else:
        if process.returncode != 0:
            raise RuntimeError(errors.decode()) from None
        return None
    _, alive = psutil.wait_procs(children, timeout=30)
    findings = [f"process lives on: {' '.join(child.cmdline())}" for child in alive]
    findings += [f"temporary file: {path.name}" for path in job.temporary.iterdir()]
    if job.bundle.exists() and (problem := job.problem()):
        findings.append(f"bundle that is not complete: {problem}")
    return findings, job.stages()


def resume(job: Job, expected: dict[str, str]) -> tuple[list[str], bool]:
    """Go on with the killed job; (findings, whether it hung)."""
    process = job.start("--resume")
    try:
        _, errors = process.communicate(timeout=HANG_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return ["--resume does not end"], True
    if process.returncode != 0:
        return [f"--resume ended with {process.returncode}: {errors.decode()[-500:]}"], False
    findings = [f"left behind: {name}" for name in job.leftovers()]
    if problem := job.problem():
        findings.append(problem)
    elif files_of(job.bundle) != expected:
        findings.append("other files than those of the run that was not killed")
    return findings, False


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Kill `count` times; returns the counts."""
    work = arguments.work.absolute()
    job = Job(work)
    begin = time.perf_counter()
    process = job.start()
    _, errors = process.communicate()
    if process.returncode != 0:
        sys.exit(errors.decode())
    duration = time.perf_counter() - begin
    expected = files_of(job.bundle)
    print(f"a whole run took {duration:.1f} s", flush=True)
    moments = random.Random(arguments.seed)
    hangs = wrong = kills = complete = 0
    while kills < arguments.count:
        job = Job(work)
        after = moments.uniform(0, duration)
        killed = kill(job, after)
        if killed is None:  # the machine was faster this time
            continue
        findings, stages = killed
        kills += 1
        complete += job.bundle.exists()
        where = f"{len(stages)} stages done" + (f", last {stages[-1]}" if stages else "")
        more, hung = resume(job, expected)
        hangs += hung
        findings += more
        wrong += bool(findings) and not hung
        outcome = "; ".join(findings) or "resumed, ok"
        print(f"{kills:3} killed after {after:5.1f} s, {where}: {outcome}", flush=True)
    shutil.rmtree(work)
    print(f"{kills} kills, {complete} times a complete bundle, {wrong} findings, {hangs} hangs")
    return {
        "suite": "interruption",
        "what": "kill -9 at random moments of `cmt-export --variant ti --target openvino --int8`, "
        "then --resume",
        "inputs": kills,
        "crashes": 0,
        "hangs": hangs,
        "wrong_successes": wrong,
        "date": datetime.date.today().isoformat(),
        "command": f"python tests/endurance/killed_exports.py --count {arguments.count}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/killed_exports"))
    parser.add_argument("--out", type=Path, help="Write the counts here as JSON.")
    given = parser.parse_args()
    counts = main(given)
    if given.out is not None:
        given.out.write_text(json.dumps(counts, indent=1) + "\n")
