"""CMT: the network, its variants and checkpoints. torch is imported only when it is needed."""

from __future__ import annotations

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


def __getattr__(name: str) -> Any:
    if name == "load_model":
        from cmt.checkpoints import load_model

        return load_model
    if name == "rewrite_for_inference":
        from cmt.rewrite import rewrite_for_inference

        return rewrite_for_inference
    raise AttributeError(f"module 'cmt' has no attribute '{name}'")
