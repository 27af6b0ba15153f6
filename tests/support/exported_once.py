"""torch's ONNX exporter, asked once for each kind of small network in a run of the tests.

It takes most of the time of an export of a small network, and what it makes of one network is the
same each time, as tests/export/test_determinism.py shows without this. Networks that differ in
their weights alone get those put into one graph, unless they have normalisations, which the
exporter folds; tests/export/test_onnx_graph.py holds that against what the exporter makes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
from torch import Tensor, nn

from cmt.export.onnx_graph import export_onnx
from cmt.network import CMT
from cmt.rewrite import InferenceCMT


def export_once(folder: Path) -> Callable[[CMT | InferenceCMT, int, Path], None]:
    """`export_onnx` that keeps its graphs in a folder, which processes may share."""

    def export(model: CMT | InferenceCMT, batch: int, path: Path) -> None:
        folds = any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
        kept = folder / f"{_identity(model, batch, with_weights=folds)}.onnx"
        if not kept.exists():
            own = kept.with_suffix(f".{os.getpid()}")
            export_onnx(model, batch, own)
            own.replace(kept)
        if folds:
            shutil.copyfile(kept, path)
        else:
            put_weights(kept, model, path)

    return export


def put_weights(graph: Path, model: nn.Module, path: Path) -> None:
    """Write a network's graph with the weights of another of the same kind."""
    tensors = {name: tensor.detach() for name, tensor in _tensors(model)}
    content = onnx.load(graph)
    for initialiser in content.graph.initializer:
        if initialiser.name in tensors:
            initialiser.raw_data = tensors[initialiser.name].contiguous().numpy().tobytes()
    onnx.save(content, path)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _identity(model: nn.Module, batch: int, *, with_weights: bool) -> str:
    """A hash of all that the exporter sees: modules, what they were told, and every tensor."""
    digest = hashlib.sha256(f"{batch}".encode())
    for name, module in model.named_modules():
        told = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        functions = {key: value.__name__ for key, value in told.items() if callable(value)}
        digest.update(f"{name} {type(module)} {sorted({**told, **functions}.items())}".encode())
    for name, tensor in _tensors(model):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if with_weights:
            digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
