"""torch -> ONNX -> simplified ONNX, both saved as files."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

from cmt.network import CMT
from cmt.rewrite import InferenceCMT

# LayerNormalization is one operator from opset 17 on, Gelu from 20 on; OpenVINO, ONNX Runtime
# and TensorRT 10 read both.
OPSET = 20
INPUT_NAME = "input"


def output_names(features: bool) -> list[str]:
    """The graph's outputs: the logits, or the four stage maps (strides 4, 8, 16, 32)."""
    return [f"stage{i}" for i in (1, 2, 3, 4)] if features else ["logits"]


def export_onnx(model: CMT | InferenceCMT, batch: int, path: Path) -> None:
    """Write the network as ONNX with a fixed (batch, 3, H, W) float32 input.

    Weights keep the network's parameter names, by which later steps tell the roles apart.
    """
    import torch

    example = torch.zeros(batch, 3, *model.img_size)
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            model,
            (example,),
            path,
            input_names=[INPUT_NAME],
            output_names=output_names(model.head is None),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def simplify_onnx(source: Path, path: Path) -> None:
    """Fold constants and merge redundant nodes with onnxsim."""
    import onnx
    import onnxsim

    with _quiet():
        # onnxsim's own check uses random input; ours (the parity gate) uses real images.
        model, _ = onnxsim.simplify(onnx.load(source), check_n=0)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporters' progress prints and their notes on packages we do not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
