"""What the commands print."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from cmt.printing import printable

if TYPE_CHECKING:
    from rich.table import Table


def say(text: object, err: bool = False) -> None:
    """One line, whatever the names in it hold."""
    click.echo(printable(text), err=err)


def print_table(table: Table) -> None:
    """A table on standard output, 80 columns wide where that is no terminal."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 80).print(table)
