"""C++ judges timings, and reads what disturbed them, as Python does."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_system import write_system

from cmt.measure.disturbance import Usage, disturbed, usage
from cmt.measure.latency import enough
from cmt.measure.timing import Timing, speedup

Judge = Callable[[Path, Timing, Timing], dict[str, Any]]


@pytest.fixture
def judged(runtime: Path) -> Judge:
    """`judged(root, ours, theirs)`: what C++ says."""

    def run(root: Path, ours: Timing, theirs: Timing) -> dict[str, Any]:
        given = {"ours": dataclasses.asdict(ours), "theirs": dataclasses.asdict(theirs)}
        result = subprocess.run(
            [runtime / "tests" / "judge_timings", root],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(result.stdout)

    return run


def drawn(random: np.random.Generator, rounds: int, noted: list[bool], noise: float) -> Timing:
    one = Timing(1.0, 1.0, disturbed=noted)
    for _ in range(rounds):
        one.rounds.append(list(random.normal(10, noise, random.integers(3, 6))))
        spent = random.uniform(-0.05, 0.2, 4)
        told = dict(zip(("waited", "stolen", "throttled", "others"), spent, strict=True))
        if random.random() < 0.1:
            told["waited"] = None  # type: ignore[assignment]
        levels = {"mhz": random.choice([2000.0, 2500.0]), "load": random.uniform(0, 3)}
        one.usages.append(Usage(1.0, 1.9, **told, switches=3, **levels))
    return one


@pytest.mark.parametrize("seed", range(12))
def test_speed_ups_intervals_and_busy_machines_are_those_of_python(
    judged: Judge, tmp_path: Path, seed: int
) -> None:
    random = np.random.default_rng(seed)
    rounds = int(random.choice([1, 5, 6, 9, 14, 27]))
    noted = [bool(x) for x in random.random(rounds) < random.choice([0.0, 0.2, 0.8])]
    ours, theirs = (drawn(random, rounds, noted, noise) for noise in random.uniform(0.01, 1, 2))
    found = judged(tmp_path, ours, theirs)
    assert found["busy"] == ours.busy
    expected = speedup(ours, theirs)
    if expected is None:
        assert found["speedup"] is None
    else:
        assert found["speedup"]["rounds"] == expected["rounds"]
        assert found["speedup"]["ratio"] == pytest.approx(expected["ratio"], rel=1e-12)
        assert found["speedup"]["ci95"] == pytest.approx(expected["ci95"], rel=1e-12)
    assert found["p50"] == pytest.approx(ours.latency["p50"], rel=1e-12)
    told = {name: figure for name, figure in ours.quality.items() if figure is not None}
    assert found["quality"].keys() == ours.quality.keys()
    assert {k: v for k, v in found["quality"].items() if v is not None} == pytest.approx(told)
    assert found["disturbed"] == [disturbed([one]) for one in ours.usages]
    assert found["enough"] == enough([theirs, ours])


def test_the_systems_counters_are_read_as_python_reads_them(judged: Judge, tmp_path: Path) -> None:
    one = Timing(1.0, 1.0, [[1.0]], usages=[Usage(1.0, 1.0)], disturbed=[False])
    nothing = judged(tmp_path, one, one)["here"]
    assert nothing == dict.fromkeys(("waited", "stolen", "throttled", "mhz", "load"))
    write_system(
        tmp_path, busy=150, stolen=13, waited=105_000_000, throttled=400_200, khz=3_000_000
    )
    found, python = judged(tmp_path, one, one)["here"], usage(tmp_path)
    assert found == pytest.approx({name: getattr(python, name) for name in nothing})
