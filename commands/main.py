"""The entry points: one command each, whose errors become one line and an exit status."""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from typing import NoReturn

import click

from cmt.commands.console import say
from cmt.errors import (
    EXPORT_PACKAGES,
    GateError,
    InputError,
    MachineError,
    export_extra,
    is_out_of_memory,
)
from cmt.printing import printable

AGAIN = "the same command starts again"
COMMANDS = {
    "cmt-export": (
        "cmt.commands.cmt_export:export_cli",
        "the same command with --resume goes on where it stopped",
    ),
    "cmt-bench": ("cmt.commands.cmt_bench:bench_cli", AGAIN),
    "cmt-classify": ("cmt.commands.cmt_classify:classify_cli", AGAIN),
    "cmt-fleet": (
        "cmt.commands.cmt_fleet:fleet_cli",
        "the same command goes on where it stopped",
    ),
    "cmt-report": ("cmt.commands.cmt_report:report_cli", AGAIN),
    "cmt-train": (
        "cmt.commands.cmt_train:train_cli",
        "the same command goes on from the last saved state",
    ),
}
"""Where each command is, imported when it is called, and what to do when it was stopped."""


def run_named() -> NoReturn:
    """Run the command that this process's first argument names, such as `export`."""
    given = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    run(f"cmt-{given}")


def run(name: str) -> NoReturn:
    """Run a command on this process's arguments.

    Errors become one line on standard error and an exit status; no error ends with the command's.
    """
    if name not in COMMANDS:
        known = ", ".join(command.removeprefix("cmt-") for command in COMMANDS)
        _fail(name, f"there is no such command: choose from {known}", 2)
    place, again = COMMANDS[name]
    stopped: list[int] = []
    room = bytearray(4 << 20)  # to say so where memory runs out

    def stop(number: int, _: object) -> NoReturn:
        stopped.append(number)
        raise KeyboardInterrupt

    # A terminated run ends like an interrupted one: with its finished work kept.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        module, function = place.split(":")
        with export_extra():
            command = getattr(import_module(module), function)
            status = command.main(prog_name=name, standalone_mode=False)
    except BaseException as error:
        del room
        # Native code and imports turn a KeyboardInterrupt into errors of their own.
        if stopped or isinstance(error, (KeyboardInterrupt, click.Abort)):
            _fail(name, f"interrupted: {again}", 130)
        _explain(name, error, again)
    sys.exit(status)


def _explain(name: str, error: BaseException, again: str) -> NoReturn:
    """One line for what went wrong; what nobody foresaw keeps its traceback."""
    try:
        raise error
    except click.ClickException as error:
        _fail(name, error.format_message(), 2)
    except InputError as error:
        _fail(name, str(error), 2)
    except GateError as error:
        _fail(name, str(error), 1)
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] not in EXPORT_PACKAGES:
            raise
        _fail(name, str(error), 2)
    except (OSError, MachineError, MemoryError) as error:  # a full disk, a killed process
        problem = str(error) or "out of memory"
        if isinstance(error, OSError) and error.errno is None:  # NumPy, of a file cut short
            problem = f"a file cannot be written ({error}; the disk may be full)"
        _fail(name, f"{problem}: when that is mended, {again}", 3)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        _fail(name, f"out of memory: when that is mended, {again}", 3)


def _fail(name: str, message: str, status: int) -> NoReturn:
    if "-v" in sys.argv or "--verbose" in sys.argv:
        _show_frames(sys.exc_info()[1])
    say(f"{name}: {message}", err=True)
    sys.exit(status)


def _show_frames(error: BaseException | None) -> None:
    """Where an error and what it came from were raised; their messages may hold names of others."""
    if error is None:
        return
    import traceback

    _show_frames(error.__cause__ or error.__context__)
    click.echo("".join(traceback.format_tb(error.__traceback__)), err=True, nl=False)
    click.echo(f"{type(error).__name__}: {printable(error)}\n", err=True)
