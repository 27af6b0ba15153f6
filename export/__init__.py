"""From a torch network to files for target runtimes, and the bundle that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Unpack

    from cmt.export.arguments import Arguments
    from cmt.export.pipeline import Bundle


def export(
    model: nn.Module | None = None,
    *,
    show_progress: bool = False,
    **options: Unpack[Arguments],
) -> Bundle:
    """Run an export as `cmt-export` does and return the bundle.

    Args:
        model: a CMT in memory, or what wraps one, of which a copy is exported; its variant is found
            in it. None takes the weights that the options name.
        show_progress: bars in a terminal and in a notebook, lines elsewhere.
        options: `targets` at least, and `variant` without a model. Texts stand for paths, one value
            for several: `targets="openvino", precisions="int8", out="bundle"`.

    Raises:
        cmt.InputError: options or input files will not do; nothing is left behind.
        cmt.GateError: a step does not compute what the torch network computes.
    """
    from cmt.errors import export_extra
    from cmt.export.call import options_from
    from cmt.measure.progress import ProgressBars

    chosen = options_from(model, options)
    with ProgressBars(show_progress, chosen.kind, chosen.resume) as progress, export_extra():
        from cmt.export.pipeline import export as run

        return run(chosen, progress)
