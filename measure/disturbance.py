"""What kept a timed process from the CPUs that it wanted, by the system's own counters."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cmt.report.rows import Disturbance
from cmt.targets.control_groups import read_text, throttled_seconds

LIMIT = 0.1
"""Share of a burst that a file may have waited for CPUs. A quiet machine's files wait for 0.002 to
0.02 of it (AMD EPYC, 2 CPUs); beside one busy loop for 0.5, and they take half as long again."""
_TICK = 0.01
"""Seconds, in which /proc/stat counts; CPUs are each wrong by up to one."""


@dataclass(frozen=True)
class Usage:
    """What a process and its machine have spent; of a burst, the difference of two.

    Seconds, summed over threads or CPUs; None where the system does not tell.

    Attributes:
        wall: by the clock.
        cpu: of this process.
        waited: that its threads could have run and had no CPU.
        stolen: that other virtual machines took from its CPUs.
        throttled: that limits of its control groups kept it from CPUs.
        others: of other processes on its CPUs.
        switches: how often its threads were made to leave a CPU.
        mhz: mean of its CPUs' present frequencies.
    """

    wall: float
    cpu: float
    waited: float | None = None
    stolen: float | None = None
    throttled: float | None = None
    others: float | None = None
    switches: int | None = None
    mhz: float | None = None

    def lost(self) -> float | None:
        """Share of the time, 0 and up, for which it was kept from CPUs by somebody else.

        Threads also wait for each other, where they are more than CPUs: such waiting is nobody
        else's, and no more is counted than others used meanwhile.
        """
        if self.waited is None or self.others is None:
            return None
        by_others = min(self.waited, self.others + _TICK * len(_own_cpus()))
        return (by_others + (self.stolen or 0) + (self.throttled or 0)) / self.wall


def usage(root: Path = Path("/")) -> Usage:
    """What this process has spent so far; `root` is where /proc and /sys are."""
    cpu, (busy, stolen) = time.process_time(), _machine(root)
    return Usage(
        wall=time.perf_counter(),
        cpu=cpu,
        waited=_waited(root),
        stolen=stolen,
        throttled=None if stolen is None else throttled_seconds(root),
        others=None if busy is None else busy - cpu,
        switches=_switches(),
        mhz=_mhz(root),
    )


def between(before: Usage, after: Usage) -> Usage:
    """What was spent from one reading to a later one of the same process."""
    spent: dict[str, Any] = {}
    for name in (field.name for field in fields(Usage)):
        was, now = getattr(before, name), getattr(after, name)
        spent[name] = None if was is None or now is None else now - was
    spent["mhz"] = after.mhz
    return Usage(**spent)


def disturbed(usages: Sequence[Usage]) -> bool:
    """Whether one of the bursts, those of one round, was kept from CPUs for longer than `LIMIT`."""
    return any((usage.lost() or 0.0) > LIMIT for usage in usages)


def summary(usages: Sequence[Usage]) -> Disturbance:
    """The report's `timing` of a file's bursts, as far as it is about CPUs.

    Shares of the time, 0 and up, summed over CPUs; None where the system does not tell.
    """
    wall = sum(usage.wall for usage in usages)

    def share(values: Iterable[float | None]) -> float | None:
        known = list(values)
        return None if None in known else max(0.0, sum(filter(None, known)) / wall)

    losses = [usage.lost() for usage in usages]
    clocks = [usage.mhz for usage in usages]
    return {
        "lost": share(loss and loss * u.wall for loss, u in zip(losses, usages, strict=True)),
        "cpu": share(usage.cpu for usage in usages),
        "waited": share(usage.waited for usage in usages),
        "stolen": share(usage.stolen for usage in usages),
        "throttled": share(usage.throttled for usage in usages),
        "others": share(usage.others for usage in usages),
        "switches_per_s": share(usage.switches for usage in usages),
        "mhz": None if None in clocks else sum(filter(None, clocks)) / len(clocks),
    }


def _own_cpus() -> set[int]:
    has_affinity = hasattr(os, "sched_getaffinity")
    return os.sched_getaffinity(0) if has_affinity else set(range(os.cpu_count() or 1))


def _waited(root: Path) -> float | None:
    """By the scheduler's statistics of each thread: time on a CPU, time in wait for one, in ns."""
    files = (root / "proc/self/task").glob("*/schedstat")
    found = [words for file in files if (words := read_text(file).split())]
    return sum(int(words[1]) for words in found) / 1e9 if found else None


def _machine(root: Path) -> tuple[float, float] | tuple[None, None]:
    """Seconds that this process's CPUs were busy, and that were stolen from them."""
    own = {f"cpu{number}" for number in _own_cpus()}
    ticks = [
        [int(word) for word in words[1:]]
        for words in map(str.split, read_text(root / "proc/stat").splitlines())
        if words and words[0] in own
    ]
    if not ticks:
        return None, None
    # user, nice, system, idle, iowait, irq, softirq, steal; guests are in user and nice.
    busy = sum(cpu[0] + cpu[1] + cpu[2] + cpu[5] + cpu[6] for cpu in ticks)
    per_second = os.sysconf("SC_CLK_TCK")
    return busy / per_second, sum(cpu[7] for cpu in ticks) / per_second


def _switches() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _mhz(root: Path) -> float | None:
    folder = root / "sys/devices/system/cpu"
    files = [folder / f"cpu{number}/cpufreq/scaling_cur_freq" for number in _own_cpus()]
    found = [int(text) for file in files if (text := read_text(file))]
    return sum(found) / len(found) / 1000 if found else None
