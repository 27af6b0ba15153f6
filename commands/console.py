"""What the commands print, and the log that has it as well."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from cmt.errors import InputError
from cmt.printing import printable, visible

if TYPE_CHECKING:
    from rich.table import Table


class _Log:
    """The file of `--log-file` while a command runs, if any."""

    file: TextIO | None = None

    def begin(self, path: Path | None) -> None:
        """Write to this file from now on, or to none."""
        self.end()
        try:
            self.file = None if path is None else path.open("w", encoding="utf-8", buffering=1)
        except OSError as error:
            raise InputError(f"--log-file {path}: {error.strerror}: choose another") from error

    def end(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    @property
    def lines(self) -> Callable[[str], None] | None:
        """What writes a line; None where nobody asked for a log."""
        return None if self.file is None else self.write

    def write(self, line: str) -> None:
        """A line, with the time."""
        if self.file is not None:
            now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            self.file.write(f"{now} {line}\n")


LOG = _Log()


def say(text: object, err: bool = False, as_is: bool = False) -> None:
    """One line, whatever the names in it hold; `as_is` keeps its spaces: columns, or a path."""
    line = visible(text) if as_is else printable(text)
    LOG.write(line)
    click.echo(line, err=err)


def print_table(table: Table) -> None:
    """A table on standard output, 80 columns wide where that is no terminal."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 80).print(table)
    if LOG.file is not None:
        Console(file=LOG.file, width=80).print(table)


def takes_common(json: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command what all have: `--json`, as `as_json`, with this help, `--quiet`, as `quiet`,
    `--log-file`, `--version`, and `--verbose`, which `commands.main` looks for."""
    import cmt

    log_file = click.option(
        "--log-file",
        type=click.Path(path_type=Path, dir_okay=False),
        expose_value=False,
        is_eager=True,
        callback=lambda _context, _option, path: LOG.begin(path),
        help="Write progress and what is said here as well, with times.",
    )
    verbose = click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        help="Show the traceback of an error.",
    )
    options = (
        click.option("--json", "as_json", is_flag=True, help=json),
        click.option(
            "--quiet", is_flag=True, help="Print warnings, errors and what --json asks for alone."
        ),
        log_file,
        verbose,
        click.version_option(cmt.__version__, message="%(prog)s %(version)s"),
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for one in reversed(options):
            command = one(command)
        return command

    return decorate
