"""How far a run is: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 10.0
"""Between two lines, at most, unless a single step takes longer."""
Write = Callable[[str], object]


class Display:
    """Shows tasks, one after another, on standard output.

    Args:
        write: writes the lines; None for standard output.
        log: is given the lines as well, also where a terminal has a bar.
    """

    def __init__(self, write: Write | None = None, log: Write | None = None) -> None:
        console = Console()
        on_terminal = write is None and console.is_terminal
        self._write, self._log = write or click.echo, log
        self._bars: Progress | None = None
        if on_terminal:
            columns = (TextColumn("{task.description}"), BarColumn())
            self._bars = Progress(
                *columns, MofNCompleteColumn(), TimeRemainingColumn(), console=console
            )
        self._begin("", 0, 0)

    def __enter__(self) -> Display:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, line: str) -> None:
        """A line of its own, which stays."""
        if self._bars is not None:
            self._bars.console.print(line, markup=False, highlight=False)
        self._lines(line)

    def _lines(self, line: str) -> None:
        if self._bars is None:
            self._write(line)
        if self._log is not None:
            self._log(line)

    def task(self, title: str, total: int, done: int = 0) -> None:
        """From now on, `advance` counts the steps of this."""
        self._begin(title, total, done)
        if self._bars is not None:
            self._bars.add_task(title, total=total, completed=done)

    def _begin(self, title: str, total: int, done: int) -> None:
        self._title, self._total, self._done, self._first = title, total, done, done
        self._started = self._shown = self._last = time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """So many steps more are done."""
        self._done += steps
        now = time.monotonic()
        if self._bars is not None:
            task = self._bars.task_ids[-1]
            title = f"{self._title} {note}".rstrip()
            self._bars.update(task, advance=steps, description=title)
        # The next step may end too late for a line.
        if now + (now - self._last) - self._shown >= LINE_SECONDS:
            self._shown = now
            self._lines(self._line(now, note))
        self._last = now

    def _line(self, now: float, note: str) -> str:
        rate = (self._done - self._first) / max(now - self._started, 1e-9)
        left = (self._total - self._done) / max(rate, 1e-9)
        line = f"{self._title}: {self._done:,} of {self._total:,}"
        return f"{line}, {note + ', ' if note else ''}{rate:.1f} a second, {left / 60:.0f} min left"
