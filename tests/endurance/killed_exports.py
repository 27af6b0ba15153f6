"""`kill -9` at random moments of the main job, each followed by `--resume`, until that ends.

    python tests/endurance/killed_exports.py [--count 50] [--seed 0] [--work DIR] [--out FILE.json]

The job is `cmt-export --variant ti --target openvino --int8` with few images. The command's own
process alone is killed, as the kernel does where memory is short. After each kill there may be
no bundle or a complete one, which opens and verifies; no worker lives on and no temporary file
is left. Then the command goes on with `--resume`, and is killed again unless it ends before the
next moment comes. It must end with a bundle that opens, verifies, and has the same files, byte
for byte, as the run that was not killed. Prints a line for each kill and each end.
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
HANG_SECONDS = 1800
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


def run(job: Job, seconds: float) -> list[str] | None:
    """Run the job, resumed, for so long, then kill it; the findings, None where it ended before.

    Raises:
        RuntimeError: the job failed by itself.
    """
    process = job.start("--resume")
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        children = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    else:
        if process.returncode != 0:
            raise RuntimeError(errors.decode()[-1000:]) from None
        return None
    _, alive = psutil.wait_procs(children, timeout=60)
    findings = [f"process lives on: {' '.join(child.cmdline())}" for child in alive]
    findings += [f"temporary file: {name}" for name in job.temporary_files()]
    if job.bundle.exists() and (problem := job.problem()):
        findings.append(f"bundle that is not complete: {problem}")
    return findings


def findings_at_end(job: Job, expected: dict[str, str]) -> list[str]:
    """What is wrong with a job that was killed, resumed and ended well."""
    findings = [f"left behind: {name}" for name in job.leftovers()]
    if problem := job.problem():
        return [*findings, problem]
    if files_of(job.bundle) != expected:
        findings.append("other files than those of the run that was not killed")
    return findings


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Kill at least `count` times, until the job that is running then has ended."""
    work = arguments.work.absolute()
    job = Job(work)
    begin = time.perf_counter()
    if run(job, HANG_SECONDS) is not None:
        sys.exit(f"a whole run takes longer than {HANG_SECONDS} s")
    duration = time.perf_counter() - begin
    expected = files_of(job.bundle)
    print(f"a whole run took {duration:.1f} s", flush=True)
    moments = random.Random(arguments.seed)
    kills = ended = wrong = crashes = 0
    while kills < arguments.count:
        job, within = Job(work), 0
        while True:
            # Half the duration at most, so that some runs are killed several times.
            last = kills >= arguments.count
            after = HANG_SECONDS if last else moments.uniform(0, duration / 2)
            try:
                findings = run(job, after)
            except RuntimeError as error:
                crashes += 1
                print(f"crash after {within} kills: {error}", flush=True)
                break
            if findings is None:
                findings = findings_at_end(job, expected)
                ended += 1
                wrong += bool(findings)
                outcome = "; ".join(findings) or "complete, verified, the same files"
                print(f"    ended after {within} kills: {outcome}", flush=True)
                break
            kills, within = kills + 1, within + 1
            wrong += bool(findings)
            stages = job.stages()
            where = f"{len(stages)} stages" + (f", last {stages[-1]}" if stages else "")
            where += ", bundle complete" if job.bundle.exists() else ", no bundle"
            outcome = "; ".join(["", *findings])
            print(f"{kills:3} killed after {after:5.1f} s: {where}{outcome}", flush=True)
    shutil.rmtree(work)
    print(f"{kills} kills of {ended} runs, {wrong} with findings, {crashes} crashes")
    return {
        "suite": "interruption",
        "what": f"kill -9 at {kills} random moments of {ended} runs of `cmt-export --variant ti "
        "--target openvino --int8`, each followed by --resume",
        "inputs": kills,
        "crashes": crashes,
        "hangs": 0,
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
