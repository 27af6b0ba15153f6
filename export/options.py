"""What a run is asked to do; the command line's options, one for one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from cmt.errors import InputError
from cmt.variants import get_variant, parse_size
from measure.environment import usable_cores
from measure.parity import PRECISIONS

BUNDLED_VAL_COUNT = 2000
"""Validation images of the bundled set unless told otherwise: minutes, not tens of minutes."""


OUTPUTS = ("logits", "features")
MOST_IMAGES = 4096
"""Per inference; `manifest.schema.json` and the C++ reader agree."""
MOST_THREADS = 4096


@dataclass(frozen=True)
class ExportOptions:
    """Options of one export.

    Attributes:
        variant: ti, xs, s or b.
        targets: names of `export.targets.TARGETS`, at least one.
        precisions: of fp16 and int8; empty means fp32 alone.
        weights: a checkpoint file, `demo` (bundled, ti), `random`, or None: demo for ti,
            random for the others.
        img_size: (height, width) in pixels; None takes the size of the weights.
        output: `logits`, or `features` for the four stage maps.
        batch: images per inference, at which everything is measured; fixed in every file but ONNX
            Runtime's.
        batch_range: the least and the most that TensorRT's engines take, whose ONNX files take any;
            None fixes them to `batch`.
        embed_preprocess: the files take resized and cropped uint8 images (B, H, W, 3) and
            scale, normalise and lay out by themselves.
        calib_data, val_data: image folders; None takes the bundled set where it fits.
        calib_count, val_count: how many of them; val_count None takes all of a folder and
            `BUNDLED_VAL_COUNT` of the bundled set.
        max_drop: largest accepted top-1 drop in points; a file that exceeds it gets units back in
            float until it does not.
        gate_minutes: time for that, for each file.
        sensitivity: measure what each part of the network loses in INT8.
        qat: epochs of quantisation-aware fine-tuning before INT8; 0 for none.
        qat_data: image folder to fine-tune on, no labels needed; None takes the calibration
            images.
        threads: of every runtime; None takes all usable CPUs.
        bench_seconds: time spent on measuring each file.
        tune: search each OpenVINO file's fastest settings on this machine by measuring.
        gpu_archs: compute capabilities of the engines, such as `sm86`; empty takes the default.
        out: the bundle's folder; None means `cmt_VARIANT` in the current one.
        sign: file of an Ed25519 private key (PEM) to sign the bundle with; None leaves it unsigned.
        command: how the run was started, for the report.
    """

    variant: str
    targets: tuple[str, ...]
    precisions: tuple[str, ...] = ()
    weights: str | Path | None = None
    img_size: tuple[int, int] | None = None
    output: str = "logits"
    batch: int = 1
    batch_range: tuple[int, int] | None = None
    embed_preprocess: bool = False
    calib_data: Path | None = None
    calib_count: int = 512
    val_data: Path | None = None
    val_count: int | None = None
    max_drop: float = 1.0
    gate_minutes: float = 10.0
    sensitivity: bool = False
    qat: int = 0
    qat_data: Path | None = None
    threads: int | None = None
    bench_seconds: float = 5.0
    tune: bool = False
    gpu_archs: tuple[str, ...] = ()
    seed: int = 0
    sign: Path | None = None
    out: Path | None = None
    resume: bool = False
    force: bool = False
    command: str = "export.export"

    def __post_init__(self) -> None:
        get_variant(self.variant)
        if self.img_size is not None:
            parse_size(self.img_size)
        if not self.targets:
            raise InputError("no target: give --target openvino, tensorrt or onnxruntime")
        for name in ("batch", "calib_count"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} must be at least 1")
        for name in ("val_count", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} must be at least 1")
        least, most = self.batch_range or (self.batch, self.batch)
        if not 1 <= least <= self.batch <= most:
            raise InputError("--batch must rise from its least to its most, such as 1:8:32")
        if most > MOST_IMAGES:
            raise InputError(f"--batch must be at most {MOST_IMAGES}")
        if self.batch_range is not None and "tensorrt" not in self.targets:
            raise InputError("a range of batches is for TensorRT's engines: give one, --batch 8")
        if self.threads is not None and self.threads > MOST_THREADS:
            raise InputError(f"--threads must be at most {MOST_THREADS}")
        if self.qat < 0:
            raise InputError("--qat must be a number of epochs, such as 3 (0 for none)")
        if self.qat and "int8" not in self.precisions:
            raise InputError("--qat fine-tunes for INT8: add --int8")
        if self.qat_data is not None and not self.qat:
            raise InputError("--qat-data is for fine-tuning: say for how many epochs with --qat")
        if not self.bundle.name:
            raise InputError(f"--out {self.out} has no name: name a folder in it, such as cmt")
        if not 0 < self.bench_seconds < math.inf:
            raise InputError("--bench-seconds must be positive and finite")
        if not math.isfinite(self.max_drop):
            raise InputError("--max-drop must be a number of points, such as 0.5 (100 accepts all)")
        if not 0 <= self.gate_minutes < math.inf:
            raise InputError("--gate-minutes must be finite, and 0 or more (0 falls back nothing)")
        if not 0 <= self.seed < 2**63:
            raise InputError("--seed must be between 0 and 2^63 - 1")
        if self.output not in OUTPUTS:
            raise InputError(f"unknown output '{self.output}': choose from {', '.join(OUTPUTS)}")
        unknown = [name for name in self.precisions if name not in PRECISIONS]
        if unknown:
            raise InputError(f"unknown precision '{unknown[0]}': choose from fp16, int8")

    @property
    def batches(self) -> tuple[int, int, int] | None:
        """The least, usual and most images per inference of TensorRT's engines; None: fixed."""
        return self.batch_range and (self.batch_range[0], self.batch, self.batch_range[1])

    @property
    def bundle(self) -> Path:
        """Where the bundle goes."""
        return (self.out or Path(f"cmt_{self.variant}")).absolute()

    @property
    def identity(self) -> str:
        """The same for a run and for the one that goes on with it, however they are written."""
        return repr(replace(self, out=None, resume=False, force=False, command=""))

    @property
    def thread_count(self) -> int:
        """Threads of every runtime."""
        return self.threads or usable_cores()
