"""Progress bars on standard error, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cmt.printing import printable


class ProgressBars:
    """A context in which tasks draw bars; without `show` they draw nothing."""

    def __init__(self, show: bool) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        columns: tuple[Any, ...] = (
            TextColumn("{task.description:<42}", markup=False),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        # Elsewhere than on a terminal, standard error is for the one line of an error.
        console = Console(stderr=True)
        self._progress = Progress(
            *columns, console=console, disable=not show or not console.is_terminal
        )

    def __enter__(self) -> ProgressBars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar of `total` steps; yields the function that advances it."""
        task = self._progress.add_task(printable(title), total=total)
        yield lambda steps: self._progress.advance(task, steps)
        self._progress.update(task, completed=total)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Work whose length is unknown: a moving bar until it is done."""
        task = self._progress.add_task(printable(title), total=None)
        yield
        self._progress.update(task, total=1, completed=1)
