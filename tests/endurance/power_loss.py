"""Power lost at random moments on a real file system, while bundles and reports are replaced.

    python tests/endurance/power_loss.py FILESYSTEM [--count 20] [--seed 0] [--work DIR]
        [--out FILE.json] [--without-fsync]

As root, with mkfs.ext4 or mkfs.xfs. The file system is in an image behind a loop device with direct
I/O, so that the image holds what was submitted to the disk and nothing of the page cache. A writer
replaces a bundle in turn as `cmt-export --force` and its report as `cmt-bench` do, and says when
each is written. At each moment the writer is stopped and the image copied; the copy is mounted, so
that its journal is replayed, and must hold a whole bundle: the last that was said to be written, or
the next. What a disk keeps in a cache of its own, without being asked to flush, counts as kept.
Each fsync of a folder waits first, as on a busy disk, so that moments fall between renames as well.

`--without-fsync` makes every fsync of the writer nothing: the same check then has to fail.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from new_report import replace_report

from cmt.bundle import placing
from cmt.bundle.manifest import MANIFEST
from cmt.bundle.reader import open_bundle
from cmt.bundle.replacing import COMPLETE, STAGED
from cmt.bundle.writer import write_manifest
from cmt.report.document import report_of

ROOT = Path(__file__).parents[2]
STORED = ROOT / "tests" / "reference" / "bundles" / "schema_1.zip"
IMAGE_BYTES = 320 << 20
"""The smallest that mkfs.xfs makes is 300 MiB."""
MOUNTED = {"ext4": (), "xfs": ("-o", "nouuid")}
"""By file system: how a copy is mounted while the original is."""

FOLDER_SECONDS = 0.05
"""How long the fsync of a folder waits: without it, hardly a moment falls between two renames."""
REPORT, BUNDLE = 0, 1
"""What an even and an odd number's writing replaces."""


def write_bundle(bundle: Path, number: int) -> None:
    """Replace the bundle by one of another run, as an export does."""
    with placing.locked(bundle):
        workspace = placing.Workspace(bundle, resume=False)
        finished = shutil.copytree(bundle, workspace.folder / "bundle")
        manifest = json.loads((finished / MANIFEST).read_text())
        write_manifest(finished, {**manifest, "run": f"{number:064}"})
        placing.place(finished, bundle)
        workspace.remove()


def write_report(bundle: Path, number: int) -> None:
    """Replace the bundle's report, as a measurement does."""
    opened = open_bundle(bundle)
    replace_report(opened, {**report_of(opened), "command": str(number)})


def slow_down_fsync(with_fsync: bool) -> None:
    """Have this process's fsync wait for folders, and do nothing else unless `with_fsync`."""
    fsync = os.fsync

    def waiting(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            time.sleep(FOLDER_SECONDS)
        if with_fsync:
            fsync(descriptor)

    os.fsync = waiting


def write_for_ever(bundle: Path, with_fsync: bool) -> None:
    """Replace bundle and report in turn; print the number of each that is written."""
    slow_down_fsync(with_fsync)
    number = number_of(bundle)
    while True:
        number += 1
        (write_bundle if number % 2 == BUNDLE else write_report)(bundle, number)
        print(number, flush=True)


def number_of(bundle: Path) -> int:
    """Which writing a bundle is of, all its hashes checked; raises InputError where one differs."""
    opened = open_bundle(bundle)
    command = report_of(opened)["command"]
    return max(int(opened.manifest["run"]), int(command) if command.isdecimal() else 0)


def run(*command: str | Path) -> str:
    """What a command prints; it must succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def mounted(device: Path, place: Path, *options: str) -> Iterator[None]:
    place.mkdir(exist_ok=True)
    run("mount", *options, device, place)
    try:
        yield
    finally:
        run("umount", place)


def copy_of_the_disk(image: Path, copy: Path) -> None:
    """Copy an image of a file system that the kernel may be writing to: until two copies agree."""
    other = copy.with_suffix(".other")
    while True:
        for place in (copy, other):
            run("cp", "--sparse=always", image, place)
        if subprocess.run(["cmp", "--quiet", copy, other], check=False).returncode == 0:
            other.unlink()
            return


class Writer:
    """The process that writes, and what it said."""

    def __init__(self, bundle: Path, with_fsync: bool) -> None:
        code = "import power_loss; from pathlib import Path; "
        code += f"power_loss.write_for_ever(Path({str(bundle)!r}), {with_fsync})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=Path(__file__).parent, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._said = b""

    def written(self) -> int:
        """The last number that it said."""
        self._said += self._output.read() or b""
        if self._process.poll() is not None:
            raise RuntimeError(f"the writer ended with status {self._process.returncode}")
        return int((self._said.split(b"\n")[:-1] or [b"0"])[-1])

    def next_is(self, kind: int) -> None:
        """Wait until a writing is said after which one of this kind begins."""
        before = self.written()
        while (now := self.written()) == before or (now + 1) % 2 != kind:
            time.sleep(0.002)

    def seconds_of(self, kind: int) -> float:
        """How long a writing of this kind takes."""
        self.next_is(kind)
        begin = time.monotonic()
        self.next_is(1 - kind)
        return time.monotonic() - begin

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def state_of(bundle: Path) -> str:
    """How far the writing was that the power loss stopped, as the folders tell."""
    if not bundle.exists():
        return "between the renames of a bundle"
    if (bundle / COMPLETE).exists():
        return "report replaced in part"
    if (bundle / STAGED).exists():
        return "report being written"
    workspace = placing.workspace_folder(bundle)
    if (workspace / "replaced").exists():
        return "bundle replaced, the old one not gone"
    return "bundle being written" if workspace.exists() else "nothing half done"


def problem_of(bundle: Path, written: int) -> str | None:
    """What is wrong with a bundle after a power loss; None if it is as it should be."""
    try:
        placing.recover(bundle)  # as the next run does
        number = number_of(bundle)
    except Exception as error:  # whatever it is, it is the finding
        return f"{type(error).__name__}: {error}"
    if number not in (written, written + 1):
        return f"it is of writing {number}, and {written} was said to be written"
    return None


def main(options: argparse.Namespace) -> int:
    """Lose power so often; the status is 1 if a bundle was lost."""
    work, rng, found = options.work.absolute(), random.Random(options.seed), 0
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    image, copy, disk, after = (work / n for n in ("image", "copy", "disk", "after"))
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    run(f"mkfs.{options.filesystem}", "-q", image)
    with ExitStack() as stack:
        device = Path(run("losetup", "--direct-io=on", "--find", "--show", image))
        stack.callback(run, "losetup", "--detach", device)
        stack.enter_context(mounted(device, disk))
        with zipfile.ZipFile(STORED) as archive:
            archive.extractall(disk / "bundle")
        manifest = json.loads((disk / "bundle" / MANIFEST).read_text())
        write_manifest(disk / "bundle", {**manifest, "run": "0" * 64})
        run("sync", "--file-system", disk)
        writer = Writer(disk / "bundle", not options.without_fsync)
        stack.callback(writer.end)
        seconds = [writer.seconds_of(kind) for kind in (REPORT, BUNDLE)]
        states: Counter[str] = Counter()
        for moment in range(options.count):
            kind = moment % 2
            writer.next_is(kind)
            time.sleep(rng.uniform(0, seconds[kind]))
            writer.stop()
            copy_of_the_disk(image, copy)
            written = writer.written()
            writer.go_on()
            with mounted(copy, after, *MOUNTED[options.filesystem]):
                where = state_of(after / "bundle")
                problem = problem_of(after / "bundle", written)
            found += problem is not None
            states[where] += 1
            result = f"after {written} writings: {where}: {problem or 'whole'}"
            print(f"{moment + 1:3} {result}", flush=True)
    shutil.rmtree(work)
    print(f"{options.filesystem}: {options.count} moments, {found} with a bundle that is not whole")
    print("; ".join(f"{where}: {count}" for where, count in states.most_common()))
    if options.out and not options.without_fsync:
        options.out.write_text(json.dumps(row(options, found), indent=1) + "\n")
    return int(found > 0)


def row(options: argparse.Namespace, found: int) -> dict[str, Any]:
    """The row of docs/notebook/robustness.md."""
    return {
        "suite": "power loss",
        "what": f"the disk as it was at random moments of replacing bundles and reports on "
        f"{options.filesystem}, mounted anew",
        "inputs": options.count,
        "crashes": 0,
        "hangs": 0,
        "wrong_successes": found,
        "date": datetime.date.today().isoformat(),
        "command": f"python tests/endurance/power_loss.py {options.filesystem} "
        f"--count {options.count}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("filesystem", choices=sorted(MOUNTED))
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "power_loss")
    parser.add_argument("--out", type=Path, help="Write the counts here as JSON.")
    parser.add_argument("--without-fsync", action="store_true")
    sys.exit(main(parser.parse_args()))
