"""torch's ONNX exporter, asked once for each network in a run of the tests.

It takes most of the time of an export of a small network, and what it makes of one network is the
same each time, as tests/export/test_determinism.py shows without this.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from torch import nn

from cmt.export.onnx_graph import export_onnx
from cmt.network import CMT
from cmt.rewrite import InferenceCMT


def export_once(folder: Path) -> Callable[[CMT | InferenceCMT, int, Path], None]:
    """`export_onnx` that keeps its graphs in a folder, which processes may share."""

    def export(model: CMT | InferenceCMT, batch: int, path: Path) -> None:
        kept = folder / f"{_identity(model, batch)}.onnx"
        if not kept.exists():
            own = kept.with_suffix(f".{os.getpid()}")
            export_onnx(model, batch, own)
            own.replace(kept)
        shutil.copyfile(kept, path)

    return export


def _identity(model: nn.Module, batch: int) -> str:
    """A hash of all that the exporter sees: modules, what they were told, and every tensor."""
    digest = hashlib.sha256(f"{batch}".encode())
    for name, module in model.named_modules():
        told = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        functions = {key: value.__name__ for key, value in told.items() if callable(value)}
        digest.update(f"{name} {type(module)} {sorted({**told, **functions}.items())}".encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
