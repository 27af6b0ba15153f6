"""Types of `cmt.export.export`'s arguments, for editors and type checkers.

Made from `export/options.py` by `docs/argument_types.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TypedDict


class Arguments(TypedDict, total=False):
    """What a program may give for each option."""

    variant: str
    targets: str | Sequence[str]
    precisions: str | Sequence[str]
    weights: str | PathLike[str] | None
    weights_key: str | None
    img_size: int | tuple[int, int] | None
    output: str
    batch: int
    batch_range: tuple[int, int] | None
    embed_preprocess: bool
    calib_data: str | PathLike[str] | None
    calib_count: int
    val_data: str | PathLike[str] | None
    val_count: int | None
    image_range: tuple[float, float] | None
    max_drop: float
    confirm: bool
    device: str | None
    gate_minutes: float
    sensitivity: bool
    qat: int
    qat_data: str | PathLike[str] | None
    gpu_archs: str | Sequence[str]
    tune: bool | None
    threads: int | None
    bench_seconds: float
    seed: int
    servers: str | Sequence[str]
    sign: str | PathLike[str] | Sequence[str | PathLike[str]]
    out: str | PathLike[str] | None
    force: bool
    resume: bool
