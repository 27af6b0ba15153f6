"""What Linux's control groups, which containers and services are, allow a process of the CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def cpu_quota(root: Path = Path("/")) -> float | None:
    """How many CPUs' time the control groups of this process allow; None without a limit.

    The least of its own group's and of those above it, as containers and services set it (Linux:
    cpu.max of cgroup v2, cpu.cfs_quota_us of v1). `root` is where /proc and /sys are.
    """
    limits = [limit for folder in _folders(root) if (limit := _limit_of(folder)) is not None]
    return min(limits, default=None)


def throttled_seconds(root: Path = Path("/")) -> float:
    """For how long, in all, these limits have kept this process's groups from CPUs, in seconds."""
    return max((_throttled_in(folder) for folder in _folders(root)), default=0.0)


def _folders(root: Path) -> Iterator[Path]:
    for mount, path in _groups(root):
        yield from _upwards(mount, path)


def _groups(root: Path) -> Iterator[tuple[Path, str]]:
    """Where the groups that limit CPUs are mounted, and this process's own behind that."""
    mounts = root / "sys" / "fs" / "cgroup"
    for line in _lines(root / "proc" / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from ((mounts, path), (mounts / "unified", path))
        elif "cpu" in controllers.split(","):
            yield mounts / "cpu", path


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """A group's folder and those above it; a container may see its mount alone."""
    parts = [part for part in path.split("/") if part]
    if ".." not in parts:  # else it lies outside of what is mounted
        yield from (mount.joinpath(*parts[:count]) for count in range(len(parts), 0, -1))
    yield mount


def _limit_of(folder: Path) -> float | None:
    if both := _lines(folder / "cpu.max"):
        quota, period = both[0].split()
    else:
        found = (_lines(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        (quota,), (period,) = (lines or ["-1"] for lines in found)
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _throttled_in(folder: Path) -> float:
    """By cpu.stat, which is in microseconds in cgroup v2 and in nanoseconds in v1."""
    fields = dict(line.split(" ", 1) for line in _lines(folder / "cpu.stat"))
    return int(fields.get("throttled_usec", 0)) / 1e6 + int(fields.get("throttled_time", 0)) / 1e9


def _lines(path: Path) -> list[str]:
    return [line for line in read_text(path).split("\n") if line]


def read_text(path: Path) -> str:
    """What the system tells in a file; nothing where it has none."""
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""
