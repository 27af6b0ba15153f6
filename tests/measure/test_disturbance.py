"""What kept a timed process from its CPUs, read from systems of files and from this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_system import write_system

from cmt.measure.disturbance import Usage, between, disturbed, summary, usage

LINUX = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="Linux counts this")


def burst(**spent: float | None) -> Usage:
    return Usage(**{"wall": 1.0, "cpu": 1.9, "waited": 0.0, "others": 0.0, **spent})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spent", "noted"),
    [
        ({}, False),
        ({"waited": 0.05, "others": 0.05}, False),
        ({"waited": 0.5, "others": 0.5}, True),
        ({"waited": 0.9, "others": 0.0}, False),  # more threads than CPUs wait for each other
        ({"waited": 0.0, "others": 0.9}, False),  # others had CPUs that nobody missed
        ({"stolen": 0.2}, True),
        ({"throttled": 0.2}, True),
        ({"waited": None, "throttled": 0.2}, True),  # no schedstat, but a limit that was met
        ({"waited": 0.5, "others": 0.5, "stolen": -0.6}, True),  # counters that went backwards
        ({"waited": 0.05, "others": -0.3, "throttled": 0.08}, False),
        ({"waited": -0.5, "others": 0.5, "throttled": 0.2}, True),  # a thread that waited is gone
        ({"wall": 10.0, "waited": 0.5, "others": 0.5}, False),
    ],
)
def test_a_round_is_disturbed_where_a_file_was_kept_from_cpus(
    spent: dict[str, float | None], noted: bool
) -> None:
    assert disturbed([burst(), burst(**spent)]) is noted


def test_how_much_is_lost_is_unknown_where_waiting_is_not_told() -> None:
    told = summary([burst(waited=None, stolen=0.25, throttled=0.0)])
    assert (told["lost"], told["stolen"]) == (None, 0.25)


def test_a_system_that_tells_nothing_disturbs_nothing_and_has_no_shares() -> None:
    unknown = Usage(wall=2.0, cpu=3.0)
    assert not disturbed([unknown])
    told = summary([unknown, unknown])
    assert told["cpu"] == 1.5
    assert {name for name, share in told.items() if share is None} == told.keys() - {"cpu"}


@LINUX
def test_the_systems_counters_are_read_as_linux_means_them(tmp_path: Path) -> None:
    write_system(tmp_path, busy=100, stolen=10, waited=5_000_000, throttled=200, khz=2_000_000)
    before = usage(tmp_path)
    write_system(
        tmp_path, busy=150, stolen=13, waited=105_000_000, throttled=400_200, khz=3_000_000
    )
    spent, cpus = between(before, usage(tmp_path)), len(os.sched_getaffinity(0))
    assert spent.waited == pytest.approx(0.2)  # both threads
    assert spent.stolen == pytest.approx(0.03 * cpus)
    assert spent.throttled == pytest.approx(0.4)
    assert spent.others is not None
    assert spent.others == pytest.approx(0.5 * cpus - spent.cpu)
    assert spent.mhz == 3000
    assert spent.load == 1.5


@LINUX
def test_a_kernel_that_does_not_count_waiting_does_not_tell(tmp_path: Path) -> None:
    write_system(tmp_path, busy=100, stolen=10, waited=5_000_000, throttled=200, khz=2_000_000)
    for file in tmp_path.glob("proc/self/task/*/schedstat"):
        file.write_text("0 0 0")
    assert usage(tmp_path).waited is None


@LINUX
def test_waiting_beside_a_busy_loop_is_seen() -> None:
    cpu = min(os.sched_getaffinity(0))
    program = f"""if True:
        import json, os, subprocess, sys, time
        os.sched_setaffinity(0, [{cpu}])
        from cmt.measure.disturbance import between, usage
        loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            before = usage()
            while time.perf_counter() - before.wall < 0.5 or time.process_time() - before.cpu < 0.1:
                pass
            print(between(before, usage()).lost())
        finally:
            loop.kill()
    """
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert float(run.stdout) > 0.25
