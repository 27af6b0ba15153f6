"""CMT: the network, its variants and checkpoints. torch is imported only when it is needed."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from cmt.errors import GateError, InputError, MachineError
from cmt.variants import FAMILIES, VARIANTS

if TYPE_CHECKING:
    from cmt.checkpoints import load_model
    from cmt.rewrite import rewrite_for_inference

__all__ = [
    "FAMILIES",
    "VARIANTS",
    "GateError",
    "InputError",
    "MachineError",
    "load_model",
    "rewrite_for_inference",
]

# OpenVINO reports to its makers, by default and without asking, that it is imported. It does
# without this package where there is none.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
# From 1.29 on, ONNX Runtime sends what it runs to its makers, and keeps a file in the temporary
# folder, unless it is told otherwise before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    if name == "load_model":
        from cmt.checkpoints import load_model

        return load_model
    if name == "rewrite_for_inference":
        from cmt.rewrite import rewrite_for_inference

        return rewrite_for_inference
    raise AttributeError(f"module 'cmt' has no attribute '{name}'")
