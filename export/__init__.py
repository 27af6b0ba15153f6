"""From a torch network to files for target runtimes, and the bundle that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmt.export.pipeline import Bundle


def export(**options: Any) -> Bundle:
    """Run an export as `cmt-export` does and return the bundle.

    Args:
        options: fields of `export.options.ExportOptions`; `variant` and `targets` at least.

    Raises:
        cmt.InputError: options or input files will not do; nothing is left behind.
        cmt.GateError: a step does not compute what the torch network computes.
    """
    from cmt.export.options import ExportOptions
    from cmt.export.pipeline import export as run

    return run(ExportOptions(**options))
