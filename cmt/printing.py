"""Text that was read from elsewhere, made safe to show."""

from __future__ import annotations

from typing import Any


def visible(value: Any) -> str:
    """The same text where all of it shows, its spaces included: a path, to be copied."""
    return "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(value)
    )


def printable(value: Any) -> str:
    """One line of visible characters.

    Names come from folders and files of others: line breaks would end a table row, escape
    sequences reach a terminal, and direction marks make a line read as another.
    """
    return visible(" ".join(str(value).split()))
