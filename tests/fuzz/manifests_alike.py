"""Holds Python's and C++'s answers to the same manifest against each other.

    manifests_alike.py PROGRAM [--count 200000] [--seed 0] [--keep] [--record]

PROGRAM is `read_manifests` of a build of runtime/cpp. Manifests that are nearly right go to both;
an answer is to take or to refuse. Exit status 1 where they differ, or where one crashes or hangs;
the manifest is then in build/fuzz. `--keep` extends the corpus by what was answered in a new way,
`--record` writes the documentation's figures.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from both_readers import ROOT, Answer, CppReader, in_python, record
from manifest_mutations import mutate

from cmt.bundle.manifest import parse_manifest

CORPUS = Path(__file__).parent / "corpus"
KEPT = CORPUS / "manifest_alike"
FOUND = ROOT / "build" / "fuzz"
MOST_CORPUS = 60
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


def corpus() -> dict[str, bytes]:
    """All that was kept, here and by the fuzzers of manifests."""
    files = [*(CORPUS / "manifest").iterdir(), *KEPT.iterdir()]
    return {file.name: file.read_bytes() for file in sorted(files)}


def nearly_right(count: int, seed: int) -> Iterator[bytes]:
    """So many manifests, each a change of one in the corpus that can be changed as JSON."""
    rng = random.Random(seed)
    whole = (CORPUS / "manifest" / "bundle").read_bytes()
    pool = [whole] * 150  # most changes of what is refused already are refused for that
    for content in corpus().values():
        try:
            json.loads(content)
        except ValueError:
            continue
        pool.append(content)
    for _ in range(count):
        yield mutate(json.loads(rng.choice(pool)), rng)


def answers(content: bytes, in_cpp: CppReader, file: Path) -> tuple[Answer, Answer]:
    """Python's and C++'s; `file` is where the C++ program reads the manifest from."""
    file.write_bytes(content)
    return in_python(lambda: parse_manifest(content)), in_cpp(file)


def kind(pair: tuple[Answer, Answer]) -> str:
    """What tells a pair of answers from others that are worth keeping."""
    said = [re.sub(r"'.*'|\".*\"|\d+|\(.*?:", "", answer.said)[:60] for answer in pair]
    return " ".join([pair[0].what, *said])


def main(options: argparse.Namespace) -> int:
    in_cpp, counts, seen = CppReader(options.program), Counter[str](), set[str]()
    with tempfile.TemporaryDirectory(prefix="cmt-alike-", dir=MEMORY) as folder:
        file = Path(folder) / "manifest.json"
        seen |= {kind(answers(content, in_cpp, file)) for content in corpus().values()}
        for content in nearly_right(options.count, options.seed):
            pair = python, cpp = answers(content, in_cpp, file)
            differs, broken = python.what != cpp.what, {python.what, cpp.what} & {"crash", "hang"}
            counts.update([python.what, *(["differ"] * differs), *broken])
            name = hashlib.sha256(content).hexdigest()[:16]
            if differs or broken:
                FOUND.mkdir(parents=True, exist_ok=True)
                (FOUND / f"alike-{name}").write_bytes(content)
                print(f"{name}: Python {python}, C++ {cpp}", flush=True)
            elif options.keep and kind(pair) not in seen and len(seen) < MOST_CORPUS:
                (KEPT / name).write_bytes(content)
            seen.add(kind(pair))
    in_cpp.close()
    print(f"{options.count:,} manifests: {dict(counts)}")
    if options.record:
        write_row(options.count, counts)
    return int(counts["differ"] + counts["crash"] + counts["hang"] > 0)


def write_row(count: int, counts: Counter[str]) -> None:
    """The figures for the table; an answer that differs is a wrong success of one of the two."""
    row = {
        "suite": "fuzzing, Python and C++",
        "what": "manifests that are nearly right, both answers held against each other",
        "inputs": count,
        "crashes": counts["crash"],
        "hangs": counts["hang"],
        "wrong_successes": counts["differ"],
        "date": datetime.date.today().isoformat(),
        "command": f"make fuzz-alike FUZZ_COUNT={count}",
    }
    record("fuzzing-alike-manifest", row)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=Path)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="extend the corpus")
    parser.add_argument("--record", action="store_true", help="write the documentation's figures")
    sys.exit(main(parser.parse_args()))
