"""What kept a timed process from the CPUs that it wanted, by the system's own counters."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cmt.report.rows import Disturbance
from cmt.targets.control_groups import read_text, throttled_seconds

LIMIT = 0.1
"""Share of a burst for which a file may be kept from CPUs. A quiet machine's files wait for 0.002
to 0.02 of it (AMD EPYC, 2 CPUs); beside one busy loop for 0.5, and they take half as long again."""
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
        load: average number of processes that ran or could have run, of the last minute.
    """

    wall: float
    cpu: float
    waited: float | None = None
    stolen: float | None = None
    throttled: float | None = None
    others: float | None = None
    switches: int | None = None
    mhz: float | None = None
    load: float | None = None

    def kept_away(self) -> float:
        """For how long it was kept from CPUs by somebody else, as far as the system tells.

        Threads also wait for each other, where they are more than CPUs: such waiting is nobody
        else's, and no more is counted than others used meanwhile.
        """
        by_others = 0.0
        if self.waited is not None and self.others is not None:
            by_others = min(self.waited, max(0.0, self.others) + _TICK * len(_own_cpus()))
        # What threads waited goes with them, and kernels have taken back what they had as stolen.
        return sum(max(0.0, one or 0) for one in (by_others, self.stolen, self.throttled))

    def lost(self) -> float | None:
        """`kept_away` as a share of the time, 0 and up; None where waiting is not told."""
        told = self.waited is not None and self.others is not None
        return self.kept_away() / self.wall if told else None


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
        load=float(words[0]) if (words := read_text(root / "proc/loadavg").split()) else None,
    )


def between(before: Usage, after: Usage) -> Usage:
    """What was spent from one reading to a later one of the same process."""
    spent: dict[str, Any] = {}
    for name in (field.name for field in fields(Usage)):
        was, now = getattr(before, name), getattr(after, name)
        spent[name] = None if was is None or now is None else now - was
    return replace(Usage(**spent), mhz=after.mhz, load=after.load)


def disturbed(usages: Sequence[Usage]) -> bool:
    """Whether one of the bursts, those of one round, was kept from CPUs for longer than `LIMIT`."""
    return any(usage.kept_away() > LIMIT * usage.wall for usage in usages)


def summary(usages: Sequence[Usage]) -> Disturbance:
    """The report's `timing` of a file's bursts, as far as it is about CPUs.

    Shares of the time, 0 and up, summed over CPUs; None where the system does not tell.
    """
    wall = sum(usage.wall for usage in usages)

    def share(values: Iterable[float | None]) -> float | None:
        known = list(values)
        return None if None in known else max(0.0, sum(filter(None, known)) / wall)

    def mean(values: Iterable[float | None]) -> float | None:
        known = list(values)
        return None if None in known else sum(filter(None, known)) / len(known)

    return {
        "lost": share(None if usage.lost() is None else usage.kept_away() for usage in usages),
        "cpu": share(usage.cpu for usage in usages),
        "waited": share(usage.waited for usage in usages),
        "stolen": share(usage.stolen for usage in usages),
        "throttled": share(usage.throttled for usage in usages),
        "others": share(usage.others for usage in usages),
        "switches_per_s": share(usage.switches for usage in usages),
        "mhz": mean(usage.mhz for usage in usages),
        "load": mean(usage.load for usage in usages),
    }


def _own_cpus() -> set[int]:
    has_affinity = hasattr(os, "sched_getaffinity")
    return os.sched_getaffinity(0) if has_affinity else set(range(os.cpu_count() or 1))


def _waited(root: Path) -> float | None:
    """By the scheduler's statistics of each thread: time on a CPU, time in wait for one, in ns.

    A kernel that does not keep them has zeros for both.
    """
    files = (root / "proc/self/task").glob("*/schedstat")
    found = [words for file in files if (words := read_text(file).split())]
    if not any(int(words[0]) for words in found):
        return None
    return sum(int(words[1]) for words in found) / 1e9


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
