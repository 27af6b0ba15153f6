"""ONNX Runtime sessions on the CPU, all set up alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime


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
