"""Holds Python's and C++'s answers to the same image against each other.

    alike.py PROGRAM [--seconds 60] [--seed 0] [--keep]

PROGRAM is `decode_images` of a build of runtime/cpp. Files that are nearly right go to both; an
answer is a refusal, or the upright pixels and whether the EXIF data could be read. Exit status 1
where they differ; the file is then in build/fuzz. `--keep` extends the corpus by what was answered
in a new way.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from image_mutations import mutate, seeds

from cmt.calib_data.decoding import decode
from cmt.calib_data.image_range import ImageRange
from cmt.calib_data.limits import UnreadableImageError
from cmt.calib_data.orientation import orientation_of
from cmt.calib_data.preprocessing import to_rgb

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus" / "image"
FOUND = ROOT / "build" / "fuzz"
MOST_CORPUS = 150


class Answer(NamedTuple):
    """`status` is 0 for a refusal, 2 where EXIF data cannot be read, else 1."""

    status: int
    width: int = 0
    height: int = 0
    checksum: int = 0
    said: str = ""

    def like(self, other: Answer) -> bool:
        """The same in all but the words of a refusal."""
        return self[:4] == other[:4]


def in_python(content: bytes, image_range: ImageRange | None = None) -> Answer:
    """What `calib_data` makes of a file's bytes."""
    try:
        image = decode(content, image_range)
        rgb = to_rgb(image)
    except MemoryError:
        raise
    except UnreadableImageError as error:
        return Answer(0, said=str(error))
    except Exception as error:  # of Pillow, for damaged files
        return Answer(0, said=f"Pillow: {error}")
    status = 1 if orientation_of(image)[1] else 2
    return Answer(status, *rgb.size, zlib.crc32(np.ascontiguousarray(rgb).tobytes()))


class InCpp:
    """What the C++ runtime makes of them, by a program that goes on running."""

    def __init__(self, program: Path, image_range: ImageRange | None = None) -> None:
        pipe = subprocess.PIPE
        command = [program, *map(repr, image_range or ())]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe)

    def __call__(self, content: bytes) -> Answer:
        process = self._process
        assert process.stdin is not None
        process.stdin.write(struct.pack("<I", len(content)) + content)
        process.stdin.flush()
        *numbers, length = struct.unpack("<5I", self._read(20))
        return Answer(*numbers, self._read(length).decode(errors="replace"))

    def _read(self, count: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(count)
        if len(data) < count:
            raise AssertionError(f"the C++ program died ({self._process.wait()})")
        return data

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def corpus() -> dict[str, bytes]:
    """All that was kept."""
    return {path.name: path.read_bytes() for path in sorted(CORPUS.glob("*"))}


def kind(content: bytes, python: Answer, cpp: Answer) -> str:
    """What tells an answer from others that are worth keeping."""
    words = [f"{a.status} {''.join(c for c in a.said if not c.isdigit())}" for a in (python, cpp)]
    return f"{content[:2]!r} {words} {python.width > python.height}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="extend the corpus")
    options = parser.parse_args()
    in_cpp, rng = InCpp(options.program), random.Random(options.seed)
    pool = list((seeds() | corpus()).values())
    seen = {kind(c, in_python(c), in_cpp(c)) for c in corpus().values()}
    counts, differences = Counter[int](), 0
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        content = mutate(rng.choice(pool), rng)
        python, cpp = in_python(content), in_cpp(content)
        counts[python.status] += 1
        name = hashlib.sha256(content).hexdigest()[:16]
        if not python.like(cpp):
            differences += 1
            FOUND.mkdir(parents=True, exist_ok=True)
            (FOUND / f"alike-{name}").write_bytes(content)
            print(f"{name}: Python {python}, C++ {cpp}", flush=True)
        elif options.keep and kind(content, python, cpp) not in seen and len(seen) < MOST_CORPUS:
            seen.add(kind(content, python, cpp))
            CORPUS.mkdir(parents=True, exist_ok=True)
            (CORPUS / name).write_bytes(content)
    in_cpp.close()
    print(
        f"{counts.total():,} images, {counts[0]:,} refused, {counts[2]:,} with EXIF data that "
        f"cannot be read; {differences} answered differently"
    )
    return int(differences > 0)


if __name__ == "__main__":
    sys.exit(main())
