"""Many inferences, loads and threads of a bundle's files: flat memory and the same answers.

    python tests/endurance/long_running.py BUNDLE [--inferences 100000] [--loads 200]
        [--threads 8] [--program build/runtime/tests/long_running] [--out FOLDER]

Every INT8 file of OpenVINO and ONNX Runtime, in Python and, with --program, in C++. Each runs in a
process of its own on one CPU thread. Growth is how far the second half's most resident memory
exceeds the first half's; at most 2 % may be. Every answer is compared bit for bit with the first
one to the same images. Prints a line for each; exit status 1 where one fails.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from cmt.bundle.reader import open_bundle
from cmt.targets.base import Array, Batch, Runner
from cmt.targets.registry import LOADERS

LARGEST_GROWTH = 2.0
"""Percent."""
TARGETS = ("openvino", "onnxruntime")

Row = dict[str, Any]


class Growth:
    """How far the second half's most resident memory exceeds the first half's.

    A leak grows to the end; what allocators keep for their threads is taken once, but not at once.
    """

    def __init__(self, total: int) -> None:
        self._half = total // 2
        self._most = [0, 0]

    def sample(self, done: int) -> None:
        half = int(done > self._half)
        self._most[half] = max(self._most[half], psutil.Process().memory_info().rss)

    @property
    def percent(self) -> float:
        return round(max(0.0, 100 * (self._most[1] / self._most[0] - 1)), 3)

    @property
    def mb(self) -> float:
        return round(max(self._most) / 1e6, 1)


def _differences(
    runner: Runner,
    batches: list[Batch],
    expected: list[list[Array]],
    inferences: int,
    growth: Growth | None = None,
) -> int:
    """How many of so many answers are not the expected ones, bit for bit."""
    different = 0
    for i in range(inferences):
        outputs = runner(batches[i % len(batches)])
        pairs = zip(outputs, expected[i % len(batches)], strict=True)
        different += any(ours.tobytes() != theirs.tobytes() for ours, theirs in pairs)
        if growth is not None and i % 100 == 99:
            growth.sample(i + 1)
    return different


def run(bundle: Path, target: str, inferences: int, loads: int, threads: int) -> Row:
    """The counts for one file; the same as `runtime/cpp/tests/long_running.cpp` prints."""
    opened = open_bundle(bundle)
    artefact = next(
        a for a in opened.artefacts if (a["target"], a["precision"]) == (target, "int8")
    )
    size = opened.manifest["input"]["shape"][0]
    images = np.load(opened.file(opened.manifest["golden"]["images"]))
    batches = [
        opened.preprocessing.feed(images[np.arange(i, i + size) % len(images)])
        for i in range(len(images))
    ]

    def load() -> Runner:
        return LOADERS[target](opened.file(artefact), 1, artefact["settings"], size)

    runner = load()
    expected = [runner(batch) for batch in batches]
    running = Growth(inferences)
    different = _differences(runner, batches, expected, inferences, running)
    each = inferences // 10 // threads
    with ThreadPoolExecutor(threads) as pool:
        futures = [
            pool.submit(_differences, runner, batches, expected, each) for _ in range(threads)
        ]
        in_threads = sum(future.result() for future in futures)
    del runner, futures
    loading, after_load = Growth(loads), 0
    for i in range(loads):
        gc.collect()
        after_load += _differences(load(), batches, expected, 1)
        loading.sample(i + 1)
    return {
        "inferences": inferences,
        "different": different,
        "growth_percent": running.percent,
        "mb": running.mb,
        "threads": threads,
        "different_in_threads": in_threads,
        "loads": loads,
        "different_after_load": after_load,
        "load_growth_percent": loading.percent,
        "load_mb": loading.mb,
    }


def in_own_process(*given: Any, **more: Any) -> Row:
    """`run` where nothing else has used memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run, given, more)


def in_cpp(
    program: Path, bundle: Path, target: str, inferences: int, loads: int, threads: int
) -> Row:
    """The same by the C++ program."""
    command = [program, bundle, f"{target}/int8", inferences, loads, threads]
    done = subprocess.run([str(a) for a in command], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def problems(row: Row) -> int:
    """How many of a row's promises do not hold."""
    grown = sum(row[key] > LARGEST_GROWTH for key in ("growth_percent", "load_growth_percent"))
    return grown + sum(value for key, value in row.items() if key.startswith("different"))


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--inferences", type=int, default=100_000)
    parser.add_argument("--loads", type=int, default=200)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--program", type=Path)
    parser.add_argument("--out", type=Path, help="Folder for a JSON file of counts for each.")
    given = parser.parse_args()
    failed = 0
    for language in ("Python", "C++") if given.program else ("Python",):
        for target in TARGETS:
            amounts = (given.bundle, target, given.inferences, given.loads, given.threads)
            row = (
                in_own_process(*amounts)
                if language == "Python"
                else in_cpp(given.program, *amounts)
            )
            print(json.dumps({"language": language, "target": target, **row}), flush=True)
            failed += problems(row)
            if given.out is not None:
                counts = {
                    "suite": "long-running",
                    "what": f"{target} in {language}: "
                    f"{row['inferences']:,} inferences, {row['loads']} loads, "
                    f"{row['threads']} threads on one file; memory grew by "
                    f"{row['growth_percent']} % and {row['load_growth_percent']} %",
                    "inputs": row["inferences"],
                    "crashes": 0,
                    "hangs": 0,
                    "wrong_successes": problems(row),
                    "date": datetime.date.today().isoformat(),
                    "command": "python tests/endurance/long_running.py BUNDLE",
                }
                given.out.mkdir(parents=True, exist_ok=True)
                path = (
                    given.out / f"long_running_{target}_{language.replace('+', 'p').lower()}.json"
                )
                path.write_text(json.dumps(counts, indent=1) + "\n")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
