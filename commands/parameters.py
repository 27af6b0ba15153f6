"""Values on the command line: their kinds, and the options that a dataclass declares."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cmt.calib_data.image_range import parse_range
from cmt.option import Option, flag_of, options_of


class ImageSize(click.ParamType):
    """`160` or `192x256` (height x width)."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        # int() would also take 1_60 and digits of other scripts.
        match = re.fullmatch(r"(-?[0-9]{1,18})(?:x(-?[0-9]{1,18}))?", str(value))
        if match is None:
            self.fail(f"'{value}' is no size: give 160, or 192x256 for height x width", param, ctx)
        return int(match[1]), int(match[2] or match[1])


class Batch(click.ParamType):
    """`8`, or `1:8:32`: the least, the usual and the most, the range None for a single number."""

    name = "n|least:usual:most"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, tuple[int, int] | None]:
        match = re.fullmatch(r"(-?[0-9]{1,18})(?::([0-9]{1,18}):([0-9]{1,18}))?", str(value))
        if match is None:
            self.fail(f"'{value}' is no batch: give 8, or 1:8:32 for least:usual:most", param, ctx)
        first, *others = (int(part) for part in match.groups() if part is not None)
        return (others[0], (first, others[1])) if others else (first, None)


class Range(click.ParamType):
    """`0,4095`: the values of black and white."""

    name = "low,high"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return parse_range(value) if isinstance(value, str) else value


class Folder(click.Path):
    """A path; a shell variable that is not set must not stand for the current one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("it is empty: give a path", param, ctx)
        return super().convert(value, param, ctx)


FOLDER = Folder(path_type=Path)


RANGE = Range()


COUNT = click.IntRange(min=1, max=4096)


MEGABYTES = click.IntRange(min=1, max=2**20)


SECONDS = click.FloatRange(min=0, min_open=True, max=3600)


class Archs(click.ParamType):
    """`sm86,sm89`, checked against the TensorRT-RTX that is installed."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from cmt.targets.tensorrt.library import parse_archs

        return parse_archs(value) if isinstance(value, str) else value


_KINDS: dict[Any, Any] = {
    Path: FOLDER,
    "size": ImageSize(),
    "batch": Batch(),
    "archs": Archs(),
    "range": RANGE,
}
"""Where click's own type of the kind will not do."""


def declared_by(kind: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options that a dataclass declares, in their order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, (about, default) in reversed(options_of(kind).items()):
            for flag, settings in reversed(_arguments(name, about, default)):
                command = click.option(*flag, **settings)(command)
        return command

    return decorate


def _arguments(
    name: str, about: Option, default: Any
) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """What `click.option` is given for a field: once, or once for each of its flags."""
    if about.flags:
        return [
            ((f"--{flag}",), {"is_flag": True, "help": text}) for flag, text in about.flags.items()
        ]
    settings: dict[str, Any] = {"help": about.help}
    if about.default is not None:
        settings["help"] += f"  [default: {about.default}]"
    if about.kind is bool:
        settings["is_flag"] = True
        if default is None:  # which of two flags is not given at all
            settings |= {"default": None, "show_default": False}
    elif about.choices is not None:
        settings["type"] = click.Choice(about.choices())
    else:
        settings["type"] = _KINDS.get(about.kind, about.kind)
    if about.metavar is not None:
        settings["metavar"] = about.metavar
    if default is dataclasses.MISSING:
        settings["required"] = True
    elif isinstance(default, (str, int, float)) and about.kind is not bool:
        settings["default"] = str(default) if about.kind == "batch" else default
    settings["multiple"] = about.many
    return [((flag_of(name, about), name), settings)]
