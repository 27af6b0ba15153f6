"""The runtimes on the CPU, each set up in one place."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime
    import openvino as ov


@cache
def openvino_core() -> ov.Core:
    """OpenVINO, once for the process.

    Each `Core` that compiles replaces the thread's alternative signal stack, and puts back the one
    it found when it goes. Of two that overlap, the second would put back the first's, which is
    freed by then: the next signal, Ctrl-C for one, would crash the process.
    """
    import openvino as ov

    return ov.Core()


def cpu_session(
    model: Path | bytes,
    threads: int,
    entries: Mapping[str, str] | None = None,
    dimensions: Mapping[str, int] | None = None,
) -> onnxruntime.InferenceSession:
    """A graph loaded to run on the CPU with the default optimisations.

    Args:
        threads: of one inference; 0 takes all.
        entries: of the session's configuration.
        dimensions: sizes in place of symbols, by the symbol's name.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    for name, value in (entries or {}).items():
        options.add_session_config_entry(name, value)
    for symbol, size in (dimensions or {}).items():
        options.add_free_dimension_override_by_name(symbol, size)
    return onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
