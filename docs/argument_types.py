"""The types of `cmt.export.export`'s arguments, made from its options.

`python docs/argument_types.py > export/arguments.py` after a change of `export/options.py`; a test
holds the two together.
"""

from __future__ import annotations

import dataclasses

from cmt.export.options import ExportOptions
from cmt.option import options_of

_HEAD = '''"""Types of `cmt.export.export`'s arguments, for editors and type checkers.

Made from `export/options.py` by `docs/argument_types.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TypedDict


class Arguments(TypedDict, total=False):
    """What a program may give for each option."""

'''
_GIVEN = {
    "tuple[str, ...]": "str | Sequence[str]",
    "tuple[Path, ...]": "str | PathLike[str] | Sequence[str | PathLike[str]]",
    "tuple[int, int]": "int | tuple[int, int]",
    "ImageRange": "tuple[float, float]",
    "Path": "str | PathLike[str]",
    "str | Path | Weights": "str | PathLike[str]",
}
"""What may be given for a field of a type."""


def source() -> str:
    """The module `cmt.export.arguments`."""
    options, lines = options_of(ExportOptions), []
    for field in dataclasses.fields(ExportOptions):
        if field.name not in options and field.name != "batch_range":
            continue
        kind = str(field.type).removesuffix(" | None")
        given = kind if field.name == "batch_range" else _GIVEN.get(kind, kind)
        optional = " | None" if str(field.type).endswith("None") else ""
        lines.append(f"    {field.name}: {given}{optional}\n")
    return _HEAD + "".join(lines)


if __name__ == "__main__":
    print(source(), end="")
