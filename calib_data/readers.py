"""Processes that read images, so that decoding keeps every CPU busy and no decoder ends a run."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

import cmt
from cmt.calib_data.reading import ImageList, ReadImages, part, read_images
from cmt.errors import MachineError
from cmt.printing import printable

PIECE = 64
"""Images that a process is given at a time."""
_AHEAD = 1
"""Lists that are read while the caller has an earlier one."""
_TRIES = 3
Pending = list[tuple[int, "Future[ReadImages]"]]
"""What is being read of a list: for each piece of it, the place where that begins."""


def read_lists(
    lists: Iterable[ImageList], processes: int
) -> Generator[tuple[ImageList, ReadImages], None, None]:
    """Every list with what `read_images` gives for it, in order, read ahead of the caller.

    A few images are read here: a process takes longer to start.

    Raises what `read_images` raises, and MachineError where images end three processes.
    """
    rest = iter(lists)
    first = list(islice(rest, 2))
    if sum(len(images["keys"]) for images in first) <= PIECE and len(first) < 2:
        for images in first:
            yield images, read_images(images)
    else:
        with Readers(processes) as readers:
            yield from readers.map(chain(first, rest))


class Readers:
    """So many processes that read images; they end with the context, or with this process.

    A process that dies is replaced, and what it was reading is read again.
    """

    def __init__(self, count: int) -> None:
        self._pool, self._own = ThreadPoolExecutor(count), threading.local()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._closed = False

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in list(self._processes):
            process.kill()
        self._pool.shutdown()
        for process in self._processes:
            _end(process)

    def map(self, lists: Iterable[ImageList]) -> Iterator[tuple[ImageList, ReadImages]]:
        """See `read_lists`."""
        running: deque[tuple[ImageList, Pending]] = deque()
        for begun in lists:
            running.append((begun, self._begin(begun)))
            if len(running) > _AHEAD:
                images, pending = running.popleft()
                yield images, _joined(pending)
        for images, pending in running:
            yield images, _joined(pending)

    def _begin(self, images: ImageList) -> Pending:
        places = range(len(images["keys"]))
        pieces = [places[begin : begin + PIECE] for begin in places[::PIECE]]
        return [(p.start, self._pool.submit(self._read, part(images, p))) for p in pieces]

    def _read(self, images: ImageList) -> ReadImages:
        for _ in range(_TRIES):
            process = self._process()
            try:
                pickle.dump(images, process.stdin)
                process.stdin.flush()
                done, answer = pickle.load(process.stdout)
            except (OSError, EOFError, pickle.UnpicklingError):
                _end(process)
                if self._closed:
                    break
                continue
            if done:
                return answer
            raise answer
        first, last = printable(images["keys"][0]), printable(images["keys"][-1])
        raise MachineError(
            f"the images from {first} to {last} ended the process that reads them {_TRIES} times: "
            "memory may be short, or a file among them breaks its decoder"
        )

    def _process(self) -> Any:
        """This thread's process, started where there is none that lives."""
        process = getattr(self._own, "process", None)
        if process is None or process.poll() is not None:
            process = self._own.process = subprocess.Popen(
                [sys.executable, "-m", "cmt.calib_data.readers", Path.cwd()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Python looks for modules in the current folder first, and the user's may hold
                # a cmt.py of their own.
                cwd=Path(cmt.__file__).parents[1],
                start_new_session=True,  # Ctrl-C is for the command, which ends them
            )
            self._processes.append(process)
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with suppress(OSError):
            if stream is not None:
                stream.close()


def _joined(pieces: Pending) -> ReadImages:
    """What was read of a list, from what was read of its pieces."""
    found = [(begin, future.result()) for begin, future in pieces]
    return {
        "pixels": np.concatenate([one["pixels"] for _, one in found]),
        "read": np.concatenate([begin + one["read"] for begin, one in found]),
        "skipped": [line for _, one in found for line in one["skipped"]],
        "unturned": [begin + place for begin, one in found for place in one["unturned"]],
        "outside": [(begin + p, count) for begin, one in found for p, count in one["outside"]],
    }


def serve(asked: BinaryIO, answers: BinaryIO) -> None:
    """Answer lists of images until there are no more."""
    while True:
        try:
            images = pickle.load(asked)
        except EOFError:
            return
        try:
            answer: tuple[bool, Any] = True, read_images(images)
        except Exception as error:  # whatever it is, it is raised where it was asked
            answer = False, error
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    os.chdir(sys.argv[1])  # that paths are relative to
    own_answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # decoders print notes of their own
    with suppress(BrokenPipeError):
        serve(sys.stdin.buffer, own_answers)
