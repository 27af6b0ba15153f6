"""A Linux system's counters as files, of a machine that was so busy as a test wants it."""

from __future__ import annotations

import os
from pathlib import Path


def write_system(root: Path, busy: int, stolen: int, waited: int, throttled: int, khz: int) -> None:
    """A machine whose CPUs have each been so long busy and stolen, in ticks; the rest as Linux."""
    cpus = sorted(os.sched_getaffinity(0))
    lines = [f"cpu{n} {busy} 0 0 50 50 0 0 {stolen} 7 7" for n in (*cpus, max(cpus) + 1)]
    files = {
        "proc/stat": "\n".join(["cpu  1 2 3 4 5 6 7 8", *lines]),
        "proc/self/task/1/schedstat": f"1 {waited} 3",
        "proc/self/task/2/schedstat": f"1 {waited} 3",
        "proc/loadavg": "1.50 0.75 0.50 2/300 1234",
        "proc/self/cgroup": "0::/box",
        "sys/fs/cgroup/box/cpu.stat": f"usage_usec 1\nthrottled_usec {throttled}",
    }
    files |= {f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_cur_freq": str(khz) for n in cpus}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
