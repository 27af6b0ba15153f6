"""A run that is told to stop finishes its step first, so that what it learned can be saved."""

from __future__ import annotations

import signal
import threading
from typing import Any


class StopRequest:
    """While it lasts, the first SIGINT or SIGTERM is noted; the second stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # others get no signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, _number: int, _frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def heed(self) -> None:
        """Stop here if that was asked for; for places where everything is saved."""
        if self.asked:
            raise KeyboardInterrupt
