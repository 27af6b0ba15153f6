"""All fuzzers, one after the other or side by side: `run.py --seconds 60 [--record] [READER...]`.

Python's (atheris) read what `readers.py` lists; C++'s (libFuzzer) are in build/fuzz where `make
fuzz-build` made them. Exit status 1 if one crashed, hung or took too much memory; its input is
then in build/fuzz. `--record` writes the figures to docs/data/robustness, from libFuzzer's own
statistics. `--keep` puts the smallest inputs that reached anything new into the corpus.
"""

from __future__ import annotations

import argparse
import datetime
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "fuzz"
CORPUS = Path(__file__).parent / "corpus"
PYTHON = {
    "manifest": "any bytes as manifest.json",
    "report": "any bytes as report.json, compared and rendered",
    "idx": "any bytes as an IDX file",
    "safetensors": "any bytes as weights in safetensors",
    "checkpoint": "any bytes as weights in a PyTorch file",
}
CPP = {
    "fuzz_manifest": "any bytes as manifest.json",
    "fuzz_image": "any bytes as an image",
}
SLOWEST_SECONDS = 25
MEMORY_MB = 4096
HANGS = ("timeout", "out-of-memory")
MOST_CORPUS_BYTES = 20_000
"""Of what `--keep` adds for one reader."""


@dataclass(frozen=True)
class Result:
    """What one fuzzer did; `failure` is how it ended: one of `HANGS`, crash, wrong success."""

    name: str
    executions: int
    failure: str | None


def program(name: str) -> list[str]:
    """The start of a fuzzer's command line."""
    if name in PYTHON:
        return [sys.executable, str(Path(__file__).with_name("fuzz_python.py")), name]
    return [str(BUILD / name)]


def seeds(name: str) -> Path:
    """The folder of files that a fuzzer starts from; both languages share the manifests."""
    return BUILD / "seeds" / name if name == "fuzz_image" else CORPUS / name.removeprefix("fuzz_")


def fuzz(name: str, seconds: int, slowest: int, found: Path) -> Result:
    """Run one fuzzer; inputs that reach anything new go to `found`."""
    command = [
        *program(name),
        f"-max_total_time={seconds}",
        f"-timeout={slowest}",
        f"-rss_limit_mb={MEMORY_MB}",
        "-print_final_stats=1",
        f"-artifact_prefix={BUILD}/{name}-",
        str(found),
        str(seeds(name)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    output = done.stdout + done.stderr
    units = re.findall(r"stat::number_of_executed_units:\s*(\d+)", output)
    failure = None
    if done.returncode != 0 or not units:
        kind = re.search(r"SUMMARY: \w+: ([\w-]+)", output)
        failure = kind[1] if kind and kind[1] in HANGS else "crash"
        if "AssertionError" in output:  # what a reader in readers.py holds of what it accepted
            failure = "wrong success"
        print("\n".join(output.splitlines()[-40:]), file=sys.stderr)
    return Result(name, int(units[-1]) if units else 0, failure)


def keep(name: str, found: Path) -> None:
    """Put the smallest of what was found into the corpus; each reached something new."""
    room = MOST_CORPUS_BYTES
    for file in sorted(found.iterdir(), key=lambda file: file.stat().st_size):
        room -= file.stat().st_size
        if room >= 0:
            shutil.copy(file, CORPUS / name)


def record(result: Result, command: str) -> None:
    """The figures as a row of the documentation's table."""
    sys.path.insert(0, str(ROOT / "docs"))
    from robustness import add_row

    language = "Python" if result.name in PYTHON else "C++"
    add_row(
        f"fuzzing-{language.lower().replace('+', 'p')}-{result.name.removeprefix('fuzz_')}",
        {
            "suite": f"fuzzing, {language}",
            "what": {**PYTHON, **CPP}[result.name],
            "inputs": result.executions,
            "crashes": int(result.failure == "crash"),
            "hangs": int(result.failure in HANGS),
            "wrong_successes": int(result.failure == "wrong success"),
            "date": datetime.date.today().isoformat(),
            "command": command,
        },
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="READER", help=", ".join([*PYTHON, *CPP]))
    parser.add_argument("--seconds", type=int, default=60, help="of each")
    parser.add_argument("--slowest", type=int, default=SLOWEST_SECONDS, help="seconds of one input")
    parser.add_argument("--jobs", type=int, default=1, help="fuzzers at once")
    parser.add_argument("--record", action="store_true", help="write the documentation's figures")
    parser.add_argument("--keep", action="store_true", help="extend the corpus of Python's")
    options = parser.parse_args()
    built = [name for name in CPP if (BUILD / name).is_file()]
    names = options.names or [*PYTHON, *built]
    BUILD.mkdir(parents=True, exist_ok=True)

    def run(name: str) -> Result:
        with tempfile.TemporaryDirectory(prefix="cmt-found-") as folder:
            found = Path(folder)
            result = fuzz(name, options.seconds, options.slowest, found)
            if options.keep and name in PYTHON and result.failure is None:
                keep(name, found)
            if options.record:
                record(result, f"make fuzz FUZZ_SECONDS={options.seconds}")
        print(f"{name}: {result.executions:,} inputs, {result.failure or 'no failure'}", flush=True)
        return result

    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(run, names))
    return int(any(result.failure for result in results))


if __name__ == "__main__":
    sys.exit(main())
