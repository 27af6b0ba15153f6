"""Reference pages, made from the code whenever the documentation is built: a hook of mkdocs."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import click

import cmt
from cmt.commands.main import COMMANDS
from cmt.export import export
from cmt.export.options import ExportOptions
from cmt.export.pipeline import Bundle
from cmt.option import options_of

_CLASSIFIES = ("classify", "outputs", "share", "close")
_SECTION = re.compile(r"(Args|Attributes|Raises|Returns):")
_ENTRY = re.compile(r"    ([\w.*, ]+): (.*)")


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs with the pages that it found; adds those that are made here."""
    from mkdocs.structure.files import File

    for name, make in (("commands", commands_page), ("python", python_page)):
        files.append(File.generated(config, f"reference/{name}.md", content=make()))
    return files


def commands_page() -> str:
    """Every command with all of its options, as `--help` has them."""
    return "\n\n".join(["# Commands", *(_command(name) for name in COMMANDS)]) + "\n"


def _command(name: str) -> str:
    module, function = COMMANDS[name][0].split(":")
    command: click.Command = getattr(import_module(module), function)
    context = click.Context(command, info_name=name, show_default=True)
    usage = command.get_usage(context).removeprefix("Usage: ")
    records = [parameter.get_help_record(context) for parameter in command.params]
    rows = [(f"`{record[0]}`", _plain(record[1])) for record in records if record is not None]
    return "\n\n".join(
        [
            f"## {name}",
            inspect.cleandoc(command.help or ""),
            f"```text\n{usage}\n```",
            _table(("option", "what it does"), rows),
        ]
    )


def python_page() -> str:
    """What a program imports: `cmt`'s own names, `cmt.export.export` and its options."""
    own = {name: getattr(cmt, name) for name in cmt.__all__}
    named = {f"cmt.{name}": value for name, value in own.items() if callable(value)}
    named |= {f"cmt.Classifier.{one}": getattr(cmt.Classifier, one) for one in _CLASSIFIES}
    parts = [_described(name, value) for name, value in named.items()]
    parts += [_described("cmt.export.export", export), *_options()]
    parts.append(_described("cmt.export.pipeline.Bundle", Bundle))
    return "\n\n".join(["# Python", *parts]) + "\n"


def _options() -> Iterator[str]:
    yield "### Options of cmt.export.export"
    types = {field.name: field.type for field in dataclasses.fields(ExportOptions)}
    rows = []
    for name, (about, default) in options_of(ExportOptions).items():
        required = default is dataclasses.MISSING
        shown = "required" if required else about.default or f"`{default!r}`"
        rows.append((f"`{name}`", f"`{types[name]}`", shown, _plain(about.help)))
    yield _table(("option", "type", "default", "what it does"), rows)


def _described(name: str, value: Callable[..., Any]) -> str:
    """The heading, signature and docstring of a function or class."""
    parts = [f"## {name}"]
    if not inspect.isclass(value):
        # Postponed annotations are strings, and shown in quotes.
        signature = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(value)))
        parts.append(f"```text\n{name}{signature}\n```")
    return "\n\n".join([*parts, _docstring(inspect.getdoc(value) or "")])


def _docstring(text: str) -> str:
    """A docstring as Markdown: its sections become lists."""
    lines = []
    for line in text.splitlines():
        section, entry = _SECTION.fullmatch(line), _ENTRY.fullmatch(line)
        if section is not None:
            lines.append(f"**{section[1]}**\n")
        elif entry is not None:
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        else:
            lines.append(re.sub(r"^ {8}", "  ", line))  # an entry goes on
    return "\n".join(lines)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plain(text: str) -> str:
    """Help as text that Markdown leaves as it is."""
    return " ".join(re.sub(r"([\[\]|*_])", r"\\\1", text).replace("<", "&lt;").split())
