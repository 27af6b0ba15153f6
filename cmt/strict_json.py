"""JSON in files of others: UTF-8, one meaning, finite numbers, bounded nesting.

`runtime/cpp/src/bundle.cpp` keeps the same rules, so that both read one manifest alike.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from cmt.files import read_regular

MAX_DEPTH = 64
"""Far above what this program's files need, far below what exhausts a stack."""

LARGEST_BYTES = 2**26
"""A hundred times a report of many machines."""


def read(path: Path) -> bytes:
    """A file's content, for `parse`; raises ValueError for one above `LARGEST_BYTES`, OSError."""
    return read_regular(path, LARGEST_BYTES)


def parse(content: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: no JSON or not in UTF-8; NaN, or a number that is no finite float64; an object
            that has a name twice; arrays and objects nested deeper than `MAX_DEPTH`.
    """
    # From bytes, json would also take UTF-16 and UTF-32, which no other reader here does.
    text = content.decode() if isinstance(content, bytes) else content
    try:
        value = json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_of_64_bits,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _check_depth(value)
    json.dumps(value, ensure_ascii=False).encode()  # halves of surrogate pairs are no UTF-8
    return value


def dump(value: Any) -> str:
    """`value` as the text of a file; what of a path is no UTF-8 becomes a question mark.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode() + "\n"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it has the name '{name[:40]}' twice in one object")
        found[name] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:40]} is too large")
    return number


def _of_64_bits(digits: str) -> int | float:
    """An integer; a float where it does not fit, as C++ takes it, and so no count of anything."""
    number = int(digits) if len(digits) <= 20 else 2**64
    return number if -(2**63) <= number < 2**64 else _finite(digits)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        nested = [item for item in level if isinstance(item, dict | list)]
        if not nested:
            return
        level = [
            child
            for item in nested
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    raise ValueError("it is nested too deeply")
