"""A file that keeps a place to one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def lock(file: Path, seconds: float = 0) -> Iterator[None]:
    """Hold `file` locked, waiting so long for it; it is removed in the end.

    The system releases the lock of a process that is killed; its file is then of no account.

    Raises:
        filelock.Timeout: another process holds it.
        OSError: it cannot be written.
    """
    from filelock import FileLock

    held = FileLock(file, timeout=seconds)
    held.acquire()
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps a file that is open
            file.unlink()  # while it is locked: whoever gets it next looks for a new one
        held.release()
