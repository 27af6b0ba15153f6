"""What is fuzzed: any bytes as a file of each kind are read, or refused by an InputError.

A reader here also holds what it accepted against what acceptance promises, so that a wrong
success is an error like any other.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from cmt.bundle.manifest import file_entries, parse_manifest
from cmt.calib_data.preprocessing import Preprocessing
from cmt.calib_data.sources import LARGEST_IDX, parse_idx
from cmt.errors import InputError
from cmt.report import comparison, comparison_pages
from cmt.report.document import parse_report, render_markdown
from cmt.report.terminal import terminal_table
from cmt.variants import LARGEST_SIDE, VARIANTS

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
FOLDER = Path(tempfile.mkdtemp(prefix="cmt-fuzz-", dir=MEMORY))


def read_manifest(data: bytes) -> None:
    """manifest.json."""
    manifest = parse_manifest(data)
    preprocessing = Preprocessing.from_description(manifest["input"])
    assert all(0 < side <= LARGEST_SIDE for side in (*preprocessing.size, *preprocessing.resize))
    with np.errstate(all="raise"):
        preprocessing.normalise(np.full((1, 1, 1, 3), 255, np.uint8))
    assert all(isinstance(entry["path"], str) for entry in file_entries(manifest))
    json.dumps(manifest, allow_nan=False)


def read_report(data: bytes) -> None:
    """report.json, and what cmt-report makes of it."""
    report = parse_report(data)
    json.dumps(report, allow_nan=False)
    merged = comparison.merge([comparison.Source(Path("report.json"), "here", report)])
    json.dumps(merged, allow_nan=False)
    comparison_pages.terminal_table(merged)
    terminal_table(report)
    render_markdown(report)


def read_idx(data: bytes) -> None:
    """An IDX file, uncompressed."""
    pixels = parse_idx(io.BytesIO(data), "a.idx")
    assert 0 < pixels.size < len(data) <= LARGEST_IDX
    assert pixels.tobytes() == data[-pixels.size :]


def read_safetensors(data: bytes) -> None:
    """Weights as safetensors."""
    _read_weights(data, FOLDER / "weights.safetensors")


def read_checkpoint(data: bytes) -> None:
    """Weights as PyTorch files."""
    _read_weights(data, FOLDER / "weights.pth")


def _read_weights(data: bytes, path: Path) -> None:
    import torch  # here, for the other readers start in a tenth of the time

    from cmt import checkpoints, weight_files

    path.write_bytes(data)
    weights = weight_files.read(path)
    state, metadata = weights.state, weights.metadata
    for value in state.values():
        assert value.dtype is torch.int64 or torch.isfinite(value).all()
    # Double the size at most: half precision becomes single.
    assert sum(value.nbytes for value in state.values()) <= 4 * len(data)
    assert all(isinstance(text, str) for text in metadata.values())
    family = checkpoints.detect_family(state)
    with suppress(InputError):
        Preprocessing.for_model((32, 32), metadata, family)
    assert checkpoints.detect_variant(state, family) in VARIANTS
    checkpoints.detect_classes(state, family)
    checkpoints.detect_size(state, family)


READERS: dict[str, Callable[[bytes], None]] = {
    "manifest": read_manifest,
    "report": read_report,
    "idx": read_idx,
    "safetensors": read_safetensors,
    "checkpoint": read_checkpoint,
}
IN_JSON = ("manifest", "report", "safetensors")
"""Their files are JSON texts, safetensors' after eight bytes with its length."""


def read(reader: str, data: bytes) -> bool:
    """Read `data`; False where it is refused as it should be. Every other exception is a bug."""
    try:
        READERS[reader](data)
    except InputError as error:
        if not str(error).strip():
            raise AssertionError("refused without a word") from error
        return False
    return True
