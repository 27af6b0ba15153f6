"""The options of a run as TOML, by the command line's names, for `cmt-export --config`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cmt.export.options import ExportOptions
from cmt.option import flag_of, options_of
from cmt.weight_files import MEMORY

CONFIG = "export.toml"
_OF_THE_RUN = ("out", "force", "resume")
"""Where a bundle goes and how; the others say what is in it."""
_HEAD = """\
# cmt-export --config export.toml --out FOLDER makes this bundle again.
# Paths are seen from the folder that it was started in.
"""


def config_text(options: ExportOptions) -> str:
    """Every option that decides the bundle, as it was given or by default."""
    lines = [_HEAD]
    for name, (about, _) in options_of(ExportOptions).items():
        value = getattr(options, name)
        if name in _OF_THE_RUN or value is None or (about.kind == "archs" and not value):
            continue
        key = flag_of(name, about).split("/")[0].removeprefix("--")
        if about.flags:
            lines += [f"{flag} = {_toml(flag in value)}\n" for flag in about.flags]
        elif name == "weights" and not isinstance(value, (str, Path)):
            lines.append(f"{key} = {_toml(MEMORY)}  # of which there is no file: give --weights\n")
        else:
            lines.append(f"{key} = {_toml(_as_given(about.kind, value, options))}\n")
    return "".join(lines).encode("utf-8", "replace").decode()


def _as_given(kind: Any, value: Any, options: ExportOptions) -> Any:
    """A value as the command line takes it."""
    if kind == "size":
        return f"{value[0]}x{value[1]}"
    if kind == "batch":
        return value if options.batches is None else ":".join(map(str, options.batches))
    if kind == "range":
        return f"{value[0]:.17g},{value[1]:.17g}"
    if kind == "archs":
        return ",".join(value)
    return value


def _toml(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    # JSON's texts are TOML's, but for a character that TOML has escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
