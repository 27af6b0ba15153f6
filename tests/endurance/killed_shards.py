"""`kill -9` of the command and of processes that read images, while many images are evaluated.

    python tests/endurance/killed_shards.py [--images 50000] [--kills 10] [--seed 0] [--kept BYTES]
                                            [--work DIR] [--out FILE.json]

The job is `cmt-export --target openvino --int8 --img-size 32` on so many files: the bundled images
drawn again. It is first left alone. Then it is killed at random moments, counted in CPU time: in
turn a process that reads images, after which it must end by itself as if nothing had been, and the
command, after which it goes on with `--resume`. It must always end with the files of the run that
was left alone, byte for byte, and with its report, times aside. Prints how much memory all its
processes had together and how large its workspace was, at most, and a line for each kill.

--kept is `export.image_shards.MOST_KEPT`, small, so that pixels are not kept but read again.
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
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from killed_exports import ROOT, cpu_seconds, files_of

from cmt.bundle.placing import workspace_folder
from cmt.calib_data.sources import bundled

OPTIONS = "--variant ti --target openvino --int8 --img-size 32 --no-tune --bench-seconds 0.2"
TIMES = ("created", "command", "latency_ms", "timing", "throughput_ips", "peak_rss_mb")
TIMES += ("speedup_vs_baseline", "speedup_vs_fp32_graph")
READER = "cmt.calib_data.readers"
SECONDS = 1.0
"""Between two looks at a run."""


def draw(folder: Path, count: int) -> None:
    """The bundled validation images as files, drawn again as often as it takes."""
    source = bundled("validation")
    assert source.labels is not None
    for i in range(count):
        place = i % len(source)
        name = source.class_names[source.labels[place]].replace("/", "_")
        (folder / name).mkdir(parents=True, exist_ok=True)
        source.load(place).save(folder / name / f"{i:06d}.png")


@dataclass
class Most:
    """The largest of what was seen: resident bytes of all processes, and bytes in the workspace."""

    memory: int = 0
    disk: int = 0

    def look(self, processes: list[psutil.Process], folder: Path) -> None:
        with suppress(psutil.NoSuchProcess):
            self.memory = max(self.memory, sum(p.memory_info().rss for p in processes))
        with suppress(OSError):  # what is renamed meanwhile
            sizes = (path.stat().st_size for path in folder.rglob("*"))
            self.disk = max(self.disk, sum(sizes))


@dataclass
class Job:
    """The command on a folder of images."""

    images: Path
    bundle: Path
    kept: int
    most: Most = field(default_factory=Most)

    def start(self) -> subprocess.Popen[bytes]:
        code = f"from cmt.export import image_shards; image_shards.MOST_KEPT = {self.kept}; "
        code += "from cmt.commands.main import run; run('cmt-export')"
        options = [*OPTIONS.split(), "--val-data", str(self.images), "--out", str(self.bundle)]
        return subprocess.Popen(
            [sys.executable, "-c", code, *options, "--quiet", "--resume"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def run(self, after: float, kill_reader: bool) -> tuple[bool, str]:
        """Run, and kill after so many seconds of CPU time; whether it ended, and what was killed.

        Raises:
            RuntimeError: the command failed by itself.
        """
        process, killed = self.start(), "nothing"
        watched = psutil.Process(process.pid)
        while True:
            with suppress(subprocess.TimeoutExpired):
                _, errors = process.communicate(timeout=SECONDS)
                if process.returncode != 0:
                    raise RuntimeError(errors.decode()[-1000:])
                return True, killed
            children = watched.children(recursive=True)
            self.most.look([watched, *children], workspace_folder(self.bundle))
            if killed != "nothing" or cpu_seconds(watched) < after:
                continue
            readers = [child for child in children if READER in _command(child)]
            if kill_reader and readers:
                readers[0].kill()
                killed = "a reader"
            elif not kill_reader:
                os.kill(process.pid, signal.SIGKILL)
                process.communicate()
                _, alive = psutil.wait_procs(children, timeout=60)
                if alive:
                    raise RuntimeError(f"lives on: {' '.join(_command(alive[0]))}")
                return False, "the command"


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def report_of(bundle: Path) -> dict[str, Any]:
    """The report without its times."""
    report = json.loads((bundle / "report.json").read_text())
    for row in (report, report["baseline"], *report["results"]):
        for name in TIMES:
            row.pop(name, None)
            row.get("reasons", {}).pop(name, None)
    return report


def main(options: argparse.Namespace) -> int:
    """Kill so often; the status is 1 if a run ended otherwise than the one left alone."""
    work, moments = options.work.absolute(), random.Random(options.seed)
    shutil.rmtree(work, ignore_errors=True)
    draw(work / "images", options.images)
    job, begun = Job(work / "images", work / "bundle", options.kept), os.times()
    job.run(math.inf, kill_reader=False)
    ended = os.times()
    used = ended.children_user + ended.children_system
    used -= begun.children_user + begun.children_system
    files, report = files_of(job.bundle), report_of(job.bundle)
    print(f"left alone: {used:.0f} s of CPU time, {_said(job.most)}", flush=True)
    kills = wrong = 0
    while kills < options.kills:
        shutil.rmtree(job.bundle)
        done = False
        while not done:
            kill_reader = kills % 2 == 0
            done, killed = job.run(moments.uniform(0, used / 2), kill_reader)
            if killed != "nothing":
                kills += 1
                print(f"{time.strftime('%H:%M:%S')} {kills:3}: {killed} killed", flush=True)
            if kills >= options.kills and not done:
                done, _ = job.run(math.inf, kill_reader=False)
        same = files_of(job.bundle) == files and report_of(job.bundle) == report
        wrong += not same
        print(f"after {kills} kills: {'the same' if same else 'another'} report", flush=True)
    print(f"{kills} kills, {wrong} other reports, {_said(job.most)}")
    if options.out:
        options.out.write_text(json.dumps(row(options, kills, wrong), indent=1) + "\n")
    shutil.rmtree(work)
    return int(wrong > 0)


def _said(most: Most) -> str:
    return f"{most.memory / 1e6:,.0f} MB in memory, {most.disk / 1e6:,.0f} MB on the disk at most"


def row(options: argparse.Namespace, kills: int, wrong: int) -> dict[str, Any]:
    """The row of docs/notebook/robustness.md."""
    return {
        "suite": "interruption of an evaluation",
        "what": f"kill -9 of the command and of readers within `cmt-export --target openvino "
        f"--int8 --img-size 32` on {options.images:,} images",
        "inputs": kills,
        "crashes": 0,
        "hangs": 0,
        "wrong_successes": wrong,
        "date": datetime.date.today().isoformat(),
        "command": f"python tests/endurance/killed_shards.py --images {options.images} "
        f"--kills {options.kills}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", type=int, default=2**26)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "killed_shards")
    parser.add_argument("--out", type=Path, help="Write the counts here as JSON.")
    sys.exit(main(parser.parse_args()))
