"""An export called from Python: options as a program has them, made those of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmt.errors import InputError
from cmt.export.options import ExportOptions
from cmt.option import Option, options_of

if TYPE_CHECKING:
    from torch import nn

_BESIDE = ("batch_range",)
"""Fields that no option of the command line is called by."""


def options_from(model: nn.Module | None, given: Mapping[str, Any]) -> ExportOptions:
    """The options of a run on a network in memory, or on what `weights` names.

    Texts stand for paths, one value for several, one side for a square.

    Raises:
        InputError: unknown options, values that will not do, or a network that is no CMT.
    """
    known = options_of(ExportOptions)
    unknown = sorted(given.keys() - known.keys() - {*_BESIDE})
    if unknown:
        choices = ", ".join([*known, *_BESIDE])
        raise InputError(f"there is no option '{unknown[0]}': choose from {choices}")
    values = {
        name: _plain(known[name][0], value) if name in known else value
        for name, value in given.items()
        if value is not None
    }
    if model is not None:
        values = {**_of_network(model, values.get("weights")), **values}
    for name in ("variant", "targets"):
        if name not in values:
            raise InputError(f"export needs {name}, such as {name}={_EXAMPLES[name]!r}")
    return ExportOptions(**values)


_EXAMPLES = {"variant": "ti", "targets": "openvino"}


def _of_network(model: nn.Module, weights: object) -> dict[str, Any]:
    from cmt.checkpoints import detect_family, detect_variant
    from cmt.weight_files import in_memory

    if weights is not None:
        raise InputError("a network in memory and weights: give one of the two")
    held = in_memory(model)
    return {"weights": held, "variant": detect_variant(held.state, detect_family(held.state))}


def _plain(about: Option, value: Any) -> Any:
    """A value as a field of `ExportOptions` has it."""
    if about.many or about.flags or about.kind == "archs":
        several = (value,) if isinstance(value, (str, os.PathLike)) else tuple(value)
        return tuple(map(Path, several)) if about.kind is Path else several
    if about.kind == "size":
        return tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if about.kind is Path or isinstance(value, os.PathLike):
        return Path(value)
    return value
