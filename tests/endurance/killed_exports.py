"""`kill -9` at random moments of the main job, each followed by `--resume`, until that ends.

    python tests/endurance/killed_exports.py [--count 50] [--seed 0] [--work DIR] [--out FILE.json]

The job is `cmt-export --variant ti --target openvino --int8` with few images. The command's own
process alone is killed, as the kernel does where memory is short. After each kill there may be
no bundle or a complete one, which opens and verifies; no worker lives on and no temporary file
is left. Then the command goes on with `--resume`, and is killed again unless it ends before the
next moment comes. It must end with a bundle that opens, verifies, and has the same files, byte
for byte, as the run that was not killed. Moments are counted in CPU time, so that they spread over
the whole job also where the machine is busy. Prints a line for each kill and each end.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from cmt.bundle.golden import verify
from cmt.bundle.manifest import file_entries
from cmt.bundle.reader import open_bundle

ROOT = Path(__file__).parents[2]
OPTIONS = "--variant ti --target openvino --int8 --val-count 16 --calib-count 8 --threads 1"


class Job:
    """The command on one output folder, in a process that can be killed."""

    def __init__(self, work: Path) -> None:
        self.bundle = work / "bundle"
        self.temporary = work / "temporary"
        shutil.rmtree(work, ignore_errors=True)
        self.temporary.mkdir(parents=True)

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        code = "from cmt.commands.main import run; run('cmt-export')"
        options = [*OPTIONS.split(), "--no-tune", "--bench-seconds", "0.2"]
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

    def temporary_files(self) -> list[str]:
        """What is in the temporary folder, but for torch's cache, an empty folder for each user."""
        return [p.name for p in self.temporary.rglob("*") if not p.name.startswith("torchinductor")]

    def leftovers(self) -> list[str]:
        """Temporary and hidden files that should not be there."""
        return [*self.temporary_files(), *(p.name for p in self.bundle.parent.glob(".*"))]

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


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time of a process and of all that it started."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += sum(one.cpu_times()[:4])  # its own, and that of its children that ended
    return total


def run(job: Job, seconds: float) -> tuple[list[str] | None, float]:
    """Run the job, resumed, and kill it after so many seconds of CPU time.

    Returns the findings, None where it ended before, and the CPU time.

    Raises:
        RuntimeError: the job failed by itself.
    """
    process, used = job.start("--resume"), 0.0
    watched = psutil.Process(process.pid)
    while used < seconds:
        try:
            _, errors = process.communicate(timeout=0.2)
        except subprocess.TimeoutExpired:
            used = cpu_seconds(watched)
            continue
        if process.returncode != 0:
            raise RuntimeError(errors.decode()[-1000:])
        return None, used
    children = watched.children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=60)
    findings = [f"process lives on: {' '.join(child.cmdline())}" for child in alive]
    findings += [f"temporary file: {name}" for name in job.temporary_files()]
    if job.bundle.exists() and (problem := job.problem()):
        findings.append(f"bundle that is not complete: {problem}")
    return findings, used


def findings_at_end(job: Job, expected: dict[str, str]) -> list[str]:
    """What is wrong with a job that was killed, resumed and ended well."""
    findings = [f"left behind: {name}" for name in job.leftovers()]
    if problem := job.problem():
        return [*findings, problem]
    if files_of(job.bundle) != expected:
        findings.append("other files than those of the run that was not killed")
    return findings


def main(arguments: argparse.Namespace) -> None:
    """Kill at least `count` times, until the job that is running then has ended."""
    work = arguments.work.absolute()
    job = Job(work)
    _, duration = run(job, math.inf)
    expected = files_of(job.bundle)
    print(f"a whole run takes {duration:.1f} s of CPU time", flush=True)
    moments = random.Random(arguments.seed)
    counts = dict.fromkeys(("kills", "ended", "wrong", "crashes"), 0)
    while counts["kills"] < arguments.count:
        _kill_until_the_end(Job(work), moments, duration, expected, counts)
        write_row(counts, arguments)
    shutil.rmtree(work)
    print(counts)


def _kill_until_the_end(
    job: Job,
    moments: random.Random,
    duration: float,
    expected: dict[str, str],
    counts: dict[str, int],
) -> None:
    """One job, killed until it ends before the next moment; its counts are added."""
    within = 0
    while True:
        # Half the duration at most, so that most runs are killed several times.
        after = moments.uniform(0, duration / 2)
        try:
            findings, _ = run(job, after)
        except RuntimeError as error:
            counts["crashes"] += 1
            print(f"crash after {within} kills: {error}", flush=True)
            return
        if findings is None:
            findings = findings_at_end(job, expected)
            counts["ended"] += 1
            counts["wrong"] += bool(findings)
            outcome = "; ".join(findings) or "complete, verified, the same files"
            print(f"    ended after {within} kills: {outcome}", flush=True)
            return
        counts["kills"], within = counts["kills"] + 1, within + 1
        counts["wrong"] += bool(findings)
        stages = job.stages()
        where = f"{len(stages)} stages" + (f", last {stages[-1]}" if stages else "")
        where += ", bundle complete" if job.bundle.exists() else ", no bundle"
        where = "; ".join([where, *findings])
        print(f"{counts['kills']:3} killed after {after:4.1f} s of CPU time: {where}", flush=True)


def write_row(counts: dict[str, int], arguments: argparse.Namespace) -> None:
    """The row of docs/notebook/robustness.md, after each run that ended."""
    if arguments.out is None:
        return
    row = {
        "suite": "interruption",
        "what": f"kill -9 at random moments of {counts['ended']} runs of `cmt-export --variant ti "
        "--target openvino --int8`, each followed by --resume",
        "inputs": counts["kills"],
        "crashes": counts["crashes"],
        "hangs": 0,
        "wrong_successes": counts["wrong"],
        "date": datetime.date.today().isoformat(),
        "command": f"python tests/endurance/killed_exports.py --count {arguments.count}",
    }
    arguments.out.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/killed_exports"))
    parser.add_argument("--out", type=Path, help="Write the counts here as JSON.")
    main(parser.parse_args())
