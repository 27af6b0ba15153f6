"""How far a run is, on standard error: bars on a terminal and in notebooks, elsewhere lines.

What the steps of a run took is kept in the cache folder, for the next one of its kind to tell how
many steps there are and how long they will take.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cmt.files import cache_folder, write_whole
from cmt.printing import printable

LINE_SECONDS = 9.0
"""Between two lines off a terminal."""
_HISTORY = "steps.json"
_MOST_KINDS = 50
"""Of runs whose times are kept, the latest."""
Write = Callable[[str], object]


class History:
    """What the steps of the last run of a kind took, in seconds by title, and what this one's take.

    Args:
        kind: what such runs have in common; empty where nothing is kept.
        goes_on: this one goes on with another, so that it may have steps behind it already.
    """

    def __init__(self, kind: str = "", goes_on: bool = False) -> None:
        self._kind, self._goes_on = kind, goes_on
        self.earlier: Mapping[str, float] = _all_kinds().get(kind, {}) if kind else {}
        self.took: dict[str, float] = {}

    def place(self, title: str) -> str:
        """Which step one is, such as `7 of 21`, of as many as the last run had."""
        titles = list(self.earlier)
        if title in titles:
            return f"{titles.index(title) + 1} of {len(titles)}"
        return f"{len(self.took) + 1}"

    def left(self, title: str, running: float) -> float | None:
        """Seconds that this step, running so long, and the later ones took last time; None: new."""
        if title not in self.earlier:
            return None
        titles = list(self.earlier)
        later = titles[titles.index(title) + 1 :]
        return max(0.0, self.earlier[title] - running) + sum(self.earlier[one] for one in later)

    def keep(self) -> None:
        """For the next run, which has no estimate where this cannot be written.

        A run that went on keeps the times of what it found done.
        """
        if not self._kind or not self.took:
            return
        before = self.earlier if self._goes_on else {}
        merged = {title: self.took.get(title, old) for title, old in before.items()}
        kinds = {key: value for key, value in _all_kinds().items() if key != self._kind}
        kinds[self._kind] = {**merged, **self.took}
        with suppress(OSError):
            cache_folder().mkdir(parents=True, exist_ok=True)
            latest = dict(list(kinds.items())[-_MOST_KINDS:])
            write_whole(cache_folder() / _HISTORY, json.dumps(latest).encode())


def _all_kinds() -> dict[str, dict[str, float]]:
    """What was kept; nothing where it cannot be read, or is not what `History` wrote."""
    try:
        kinds = json.loads(Path(cache_folder(), _HISTORY).read_bytes())
        return {
            kind: {str(title): float(seconds) for title, seconds in took.items()}
            for kind, took in kinds.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


class ProgressBars:
    """A context in which tasks show how far they are; without `show` they show nothing.

    Args:
        kind, goes_on: of the run, for its `History`.
        log: is given a line when a step begins, and every ten seconds, whatever is shown.
    """

    def __init__(
        self, show: bool, kind: str = "", goes_on: bool = False, log: Write | None = None
    ) -> None:
        from rich.console import Console

        console = Console(stderr=True)
        drawn = console.is_terminal or console.is_jupyter
        self._bars = _bars(console, show and drawn)
        self._history, self._log = History(kind, goes_on), log
        self._write = _to_standard_error if show and not drawn else None
        self._ended, self._ticking = threading.Event(), threading.Thread(target=self._tick)
        self._ticking.daemon = True
        self._title, self._count, self._total = "starting", 0, 0
        self._heading = self._title
        self._began = time.monotonic()

    def __enter__(self) -> ProgressBars:
        self._bars.start()
        if self._write or self._log:
            self._ticking.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._ended.set()
        self._bars.stop()
        if kind is None:
            self._history.keep()

    def _tick(self) -> None:
        """Lines for whoever reads a log, from a thread: some steps are one long call."""
        while not self._ended.wait(LINE_SECONDS):
            line = self._line(time.monotonic() - self._began)
            for write in filter(None, (self._write, self._log)):
                write(line)

    def _line(self, running: float) -> str:
        counted = f" {self._count:,} of {self._total:,}" if self._total > 1 else ""
        left = self._history.left(self._title, running)
        expected = "" if left is None else f", about {duration(left)} left as last time"
        return f"{self._heading}:{counted} ({duration(running)}{expected})"

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar of `total` steps; yields the function that advances it."""
        with self._step(title, total) as bar:

            def advance(steps: int) -> None:
                self._count += steps
                self._bars.advance(bar, steps)

            yield advance
            self._bars.update(bar, completed=total)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Work whose length is unknown: a moving bar until it is done."""
        with self._step(title, None) as bar:
            yield
            self._bars.update(bar, total=1, completed=1)

    @contextmanager
    def _step(self, title: str, total: int | None) -> Iterator[Any]:
        self._title, self._count, self._total = printable(title), 0, total or 0
        began = self._began = time.monotonic()
        self._heading = f"step {self._history.place(self._title)}, {self._title}"
        if self._log is not None:
            self._log(self._heading)
        left = self._history.left(self._title, 0.0)
        shown = self._heading if left is None else f"{self._heading} ({duration(left)} left)"
        yield self._bars.add_task(shown.removeprefix("step "), total=total)
        took = self._history.took
        took[printable(title)] = took.get(printable(title), 0.0) + time.monotonic() - began


def duration(seconds: float) -> str:
    """`7 s` or `3 min 20 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _to_standard_error(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _bars(console: Any, shown: bool) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    return Progress(
        TextColumn("{task.description:<42}", markup=False),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not shown,
    )
