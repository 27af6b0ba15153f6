"""Made-up machines whose control groups limit the CPUs, and how many CPUs' time that is."""

from __future__ import annotations

from pathlib import Path

GROUPS: dict[str, tuple[float | None, dict[str, str]]] = {
    "its own group": (1.5, {"": "0::/a/b\n", "a/b/cpu.max": "150000 100000\n"}),
    "a group above": (
        0.5,
        {"": "0::/a/b\n", "a/cpu.max": "50000 100000\n", "a/b/cpu.max": "150000 100000\n"},
    ),
    "a container": (2.0, {"": "0::/\n", "cpu.max": "200000 100000\n"}),
    "a container that sees its name": (
        0.25,
        {"": "0::/docker/c0ffee\n", "cpu.max": "5000 20000\n"},
    ),
    "a name with colons": (3.0, {"": "0::/a:b:c\n", "a:b:c/cpu.max": "300000 100000\n"}),
    "a group that is not mounted": (
        1.0,
        {"": "0::/../other\n", "cpu.max": "100000 100000\n", "../other/cpu.max": "1000 100000\n"},
    ),
    "no limit": (None, {"": "0::/a\n", "a/cpu.max": "max 100000\n", "cpu.max": "max 100000\n"}),
    "no groups": (None, {}),
    "version 1": (
        0.75,
        {
            "": "5:cpuset:/docker/x\n4:cpu,cpuacct:/docker/x\n",
            "cpu/docker/x/cpu.cfs_quota_us": "75000\n",
            "cpu/docker/x/cpu.cfs_period_us": "100000\n",
            "cpuset/docker/x/cpu.cfs_quota_us": "1\n",
            "cpuset/docker/x/cpu.cfs_period_us": "100000\n",
        },
    ),
    "version 1 without a limit": (
        None,
        {"": "4:cpu:/\n", "cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
    ),
    "both versions": (
        4.0,
        {"": "1:name=systemd:/x\n0::/x\n", "unified/x/cpu.max": "400000 100000\n"},
    ),
}


def write_groups(root: Path, files: dict[str, str]) -> None:
    """These files below `root`, which stands for the machine's; "" is the process's own list."""
    for name, text in files.items():
        path = root / "sys" / "fs" / "cgroup" / name if name else root / "proc" / "self" / "cgroup"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
