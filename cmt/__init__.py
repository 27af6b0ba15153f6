"""CMT: the network, its variants and checkpoints. torch is imported only when it is needed."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from cmt.errors import GateError, InputError, MachineError, export_extra
from cmt.variants import FAMILIES, VARIANTS

if TYPE_CHECKING:
    __version__: str
    from cmt.bundle.classifier import Classifier
    from cmt.checkpoints import load_model
    from cmt.rewrite import rewrite_for_inference

__all__ = [
    "FAMILIES",
    "VARIANTS",
    "Classifier",
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


_WHERE = {
    "Classifier": "cmt.bundle.classifier",
    "load_model": "cmt.checkpoints",
    "rewrite_for_inference": "cmt.rewrite",
}
"""Where each name is that is imported when it is asked for."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("cmt-export")
    if name not in _WHERE:
        raise AttributeError(f"module 'cmt' has no attribute '{name}'")
    from importlib import import_module

    with export_extra():
        return getattr(import_module(_WHERE[name]), name)
