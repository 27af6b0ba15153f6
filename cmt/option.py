"""Options declared once: a dataclass field is the command line's option, its check and its help.

`option` makes the field; whoever builds a command line or a page asks `options_of` the class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np

from cmt.errors import InputError

_KEY = "option"


@dataclass(frozen=True)
class Option:
    """What is to be known of a field beside its name, type and default.

    Attributes:
        help: one sentence, for people.
        kind: what reads it from text: `str`, `int`, `float`, `bool` (a flag), `Path`, or a parser;
            None for what the command line does not set by itself.
        flag: on the command line; the field's name with dashes where None.
        default: the default in words, where it is decided later.
        metavar: what stands for the value in the help.
        choices: the only values; of a field that holds several, of each.
        many: holds several values, each given by itself.
        flags: of a field that holds several, a flag for each choice, with its help.
        check: what is wrong with a value, behind the flag's name ("must be ..."); None where it is
            right. May raise InputError by itself.
    """

    help: str
    kind: Any = str
    flag: str | None = None
    default: str | None = None
    metavar: str | None = None
    choices: Callable[[], tuple[str, ...]] | None = None
    many: bool = False
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    check: Callable[[Any], str | None] = lambda _: None


def option(help: str, *, value: Any = MISSING, **about: Any) -> Any:
    """A dataclass field with this default `value` (required without) and this `Option`."""
    return field(default=value, metadata={_KEY: Option(help, **about)})


def options_of(kind: type) -> dict[str, tuple[Option, Any]]:
    """The options of a class by field name, each with its default (`dataclasses.MISSING`)."""
    return {
        entry.name: (entry.metadata[_KEY], entry.default)
        for entry in dataclasses.fields(kind)
        if _KEY in entry.metadata
    }


def flag_of(name: str, about: Option) -> str:
    """What an option is called on the command line."""
    return about.flag or f"--{name.replace('_', '-')}"


def check_options(options: Any) -> None:
    """Raise InputError, naming the flag, for the first field whose value will not do."""
    for name, (about, _) in options_of(type(options)).items():
        value = getattr(options, name)
        if value is None:
            continue
        problem = _of_wrong_kind(about, value) or about.check(value)
        if problem is not None:
            raise InputError(f"{flag_of(name, about)} {problem}")


_PLAIN_KINDS: dict[Any, tuple[Any, str]] = {
    **dict.fromkeys((int, "batch"), (Integral, "a whole number")),
    float: (Real, "a number"),
    bool: ((bool, np.bool_), "True or False"),
}


def _of_wrong_kind(about: Option, value: Any) -> str | None:
    """What is wrong with a value that no command line read, as `options.check` would trip over."""
    expected, words = _PLAIN_KINDS.get(about.kind, (object, ""))
    return None if isinstance(value, expected) else f"must be {words}, not {value!r}"


def at_least(least: int, most: int | None = None) -> Callable[[Any], str | None]:
    """A check for numbers within bounds."""

    def check(value: Any) -> str | None:
        if value < least:
            return f"must be at least {least}"
        if most is not None and value > most:
            return f"must be at most {most}"
        return None

    return check
