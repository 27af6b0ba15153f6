"""What a machine draws while a file runs: Jetson rails, RAPL packages, NVIDIA GPUs."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

INTERVAL_MS = 100
_ZONES = "sys/class/powercap"
# "VDD_IN 4890mW/4712mW" is what it draws now and has drawn on average; JetPack 4 leaves out the
# units. "RAM 2390/3964MB" is none of it.
_RAIL = re.compile(r"(?<!\S)([A-Z]\w*) (\d+)(?:mW)?/\d+(?:mW)?(?!\S)")
_WATTS = re.compile(r"^(\d+\.\d+)$", re.MULTILINE)


@contextmanager
def sampled(samples: dict[str, list[int]], root: Path = Path("/")) -> Iterator[None]:
    """Add to `samples` what each meter says is drawn, in mW, while the block runs.

    A Jetson's rails ("Jetson Linux Developer Guide", "tegrastats Utility") and GPU 0 by nvidia-smi
    are read ten times a second; RAPL's packages (Linux, "Power Capping Framework") count energy, so
    that there is one figure for each block. What the machine draws without the file is in all.

    Args:
        root: where /sys is.
    """
    rails = _printed("tegrastats", "--interval", str(INTERVAL_MS))
    query = ("--id=0", "--query-gpu=power.draw", "--format=csv,noheader,nounits")
    gpu = _printed("nvidia-smi", *query, f"--loop-ms={INTERVAL_MS}")
    before, begin = _joules(root), time.monotonic()
    with rails as said, gpu as watts:
        yield
        seconds = time.monotonic() - begin
        for name, joules in _joules(root).items():
            if joules >= before.get(name, joules + 1):  # else the counter has begun anew
                milliwatts = round(1000 * (joules - before[name]) / seconds)
                samples.setdefault(name, []).append(milliwatts)
    for rail, milliwatts in _RAIL.findall("".join(said)):
        samples.setdefault(rail, []).append(int(milliwatts))
    for one in _WATTS.findall("".join(watts)):
        samples.setdefault("GPU", []).append(round(1000 * float(one)))


def joules_per_image(power_mw: Mapping[str, float], throughput: float) -> dict[str, float] | None:
    """By meter, given its mean in mW and the images per second meanwhile; None without any."""
    return {name: mw / 1000 / throughput for name, mw in power_mw.items()} or None


def no_meter(root: Path = Path("/")) -> str:
    """Why nothing is known of what this machine draws."""
    if any((root / _ZONES).glob("intel-rapl:*")):
        return f"this user may not read the RAPL counters in {root / _ZONES}"
    return "no meter: neither RAPL's counters nor tegrastats nor nvidia-smi"


def _joules(root: Path) -> dict[str, float]:
    """What RAPL has counted for each package so far; nothing of those that may not be read."""
    found = {}
    for zone in sorted((root / _ZONES).glob("intel-rapl:?")):
        try:
            name = (zone / "name").read_text().strip()
            found[f"RAPL {name}"] = int((zone / "energy_uj").read_text()) / 1e6
        except (OSError, ValueError):
            continue
    return found


@contextmanager
def _printed(name: str, *arguments: str) -> Iterator[Sequence[str]]:
    """What a tool has printed while the block ran, once it has ended; nothing without the tool."""
    lines: list[str] = []
    tool = shutil.which(name)
    if tool is None:
        yield lines
        return
    with tempfile.TemporaryFile("w+") as file:  # a pipe would be full after some seconds
        command = [tool, *arguments]
        with subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL) as process:
            try:
                yield lines
            finally:
                process.terminate()
        file.seek(0)
        lines += file.readlines()
