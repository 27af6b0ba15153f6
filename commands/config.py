"""`--config FILE`: a command's options from TOML, which the command line overrides."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from cmt.commands.parameters import FOLDER
from cmt.errors import InputError
from cmt.files import read_regular
from cmt.option import options_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LONGEST = 2**20


def takes_config(kind: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command `--config`, for the options that a dataclass declares."""

    def use(context: click.Context, _: click.Parameter, path: Path | None) -> None:
        if path is not None:
            context.default_map = _values(path, _options(context.command, kind))

    return click.option(
        "--config",
        metavar="FILE",
        type=FOLDER,
        is_eager=True,
        expose_value=False,
        callback=use,
        help="TOML with these options by name, as every bundle has it; the command line wins.",
    )


def _options(command: click.Command, kind: type) -> dict[str, click.Option]:
    """The declared options by what they are called in a file."""
    declared = options_of(kind)
    names = {*declared, *(flag for about, _ in declared.values() for flag in about.flags)}
    return {
        parameter.opts[0].removeprefix("--"): parameter
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.name in names
    }


def _values(path: Path, options: Mapping[str, click.Option]) -> dict[str, Any]:
    try:
        content = tomllib.loads(read_regular(path, _LONGEST).decode())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no TOML file ({error}): correct it") from error
    values: dict[str, Any] = {}
    for name, value in content.items():
        if name not in options:
            raise InputError(f"{path}: there is no option '{name}': see cmt-export --help")
        option = options[name]
        several = isinstance(value, list) and option.multiple
        if not (several or isinstance(value, bool if option.is_flag else (str, int, float))):
            expected = "true or false" if option.is_flag else "a text or a number"
            raise InputError(f"{path}: '{name}' must be {expected}")
        values[str(option.name)] = [value] if option.multiple and not several else value
    return values
