"""Python's and C++'s answers to one manifest or bundle, with limits on time and memory."""

from __future__ import annotations

import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from cmt.errors import InputError

ROOT = Path(__file__).parents[2]
SLOWEST_SECONDS = 60
"""Of one input, wall time: far above what a busy machine needs."""
MEMORY_BYTES = 4 << 30


class Answer(NamedTuple):
    """`what` is `accepted`, `refused`, `crash` or `hang`; `said` is the message, if any."""

    what: str
    said: str = ""


class HangError(Exception):
    """A reader took longer than `SLOWEST_SECONDS`."""


def limit_memory() -> None:
    """Bound this process's memory, as `CppReader` bounds its program's."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def in_python(read: Callable[[], object]) -> Answer:
    """What one call of a reader comes to: an InputError of one line is a refusal."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SLOWEST_SECONDS)
    try:
        read()
    except InputError as error:
        return Answer("refused", str(error))
    except HangError:
        return Answer("hang")
    except Exception as error:  # whatever it is, it is the finding
        return Answer("crash", f"{type(error).__name__}: {error}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return Answer("accepted")


class CppReader:
    """The program `read_manifests`, which goes on running and is started anew after a crash.

    Args:
        bounded: limit its memory; AddressSanitizer takes terabytes of addresses for itself.
    """

    def __init__(self, program: Path, bounded: bool = True) -> None:
        self._program, self._bounded = program, bounded
        self._start()

    def _start(self) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [self._program],
            stdin=pipe,
            stdout=pipe,
            bufsize=0,
            preexec_fn=limit_memory if self._bounded else None,
        )

    def __call__(self, path: Path) -> Answer:
        """What it makes of a file as manifest.json, or of a folder as a bundle."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{path}\n".encode())
        if not select.select([process.stdout], [], [], SLOWEST_SECONDS)[0]:
            self.close()
            self._start()
            return Answer("hang")
        line = b""
        while not line.endswith(b"\n") and (piece := process.stdout.read(1 << 16)):
            line += piece
        said = line.decode(errors="replace")
        if said.count("\n") != 1:
            self.close()
            self._start()
            return Answer("crash", said or f"status {process.returncode}")
        return Answer("accepted") if said == "ok\n" else Answer("refused", said.strip())

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.communicate()


def record(name: str, row: dict[str, Any]) -> None:
    """Write a row of docs/notebook/robustness.md; raises ValueError for one of another kind."""
    sys.path.insert(0, str(ROOT / "docs"))
    from robustness import add_row

    add_row(name, row)
