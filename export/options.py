"""What a run is asked to do: each option declared once, for the command line and for Python."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmt.bundle.serving import SERVERS
from cmt.calib_data.image_range import ImageRange, check_range
from cmt.errors import InputError
from cmt.option import at_least, check_options, option
from cmt.targets.base import PRECISIONS
from cmt.targets.machine import usable_cores
from cmt.targets.registry import TARGETS
from cmt.variants import VARIANTS, get_variant, parse_size

if TYPE_CHECKING:
    from cmt.weight_files import Weights

BUNDLED_VAL_COUNT = 2000
"""Validation images of the bundled set unless told otherwise: minutes, not tens of minutes."""
OUTPUTS = ("logits", "features")
MOST_IMAGES = 4096
"""Per inference; `manifest.schema.json` and the C++ reader agree."""
MOST_THREADS = 4096


def _unless(right: Callable[[Any], bool], problem: str) -> Callable[[Any], str | None]:
    return lambda value: None if right(value) else problem


def _refused_by(check: Callable[[Any], Any]) -> Callable[[Any], None]:
    def refuse(value: Any) -> None:
        check(value)

    return refuse


def _known_output(value: str) -> None:
    if value not in OUTPUTS:
        raise InputError(f"unknown output '{value}': choose from {', '.join(OUTPUTS)}")


def _known_precisions(values: tuple[str, ...]) -> None:
    for value in values:
        if value not in PRECISIONS:
            raise InputError(f"unknown precision '{value}': choose from fp16, int8")


def _some_target(values: tuple[str, ...]) -> None:
    if not values:
        raise InputError("no target: give --target openvino, tensorrt or onnxruntime")


@dataclass(frozen=True)
class ExportOptions:
    """Options of one export.

    `export.calibration`, `export.gate` and the pages on each step say what they do with them.
    Sizes are (height, width) in pixels; `batch` images per inference are what everything is
    measured at, fixed in every file but ONNX Runtime's and TensorRT's with a `batch_range`.
    """

    variant: str = option(
        "CMT variant.", choices=lambda: tuple(VARIANTS), check=_refused_by(get_variant)
    )
    targets: tuple[str, ...] = option(
        "What to export to; may repeat.",
        flag="--target",
        many=True,
        choices=lambda: tuple(TARGETS),
        check=_some_target,
    )
    precisions: tuple[str, ...] = option(
        "Beside fp32, or what a target always builds.",
        value=(),
        flags={
            "fp16": "Build FP16 files.",
            "int8": "Build INT8 files, calibrated on images.",
        },
        check=_known_precisions,
    )
    weights: str | Path | Weights | None = option(
        "Checkpoint file, 'demo' or 'random'.",
        value=None,
        default="demo for ti, random for the others",
    )
    weights_key: str | None = option(
        "Which of several weights in the checkpoint, such as state_dict.",
        value=None,
        metavar="NAME",
        default="the average, where there is one",
    )
    img_size: tuple[int, int] | None = option(
        "Input size.",
        value=None,
        kind="size",
        default="the weights' own",
        check=_refused_by(parse_size),
    )
    output: str = option(
        "Class logits, or the four stage maps for detection and segmentation.",
        value="logits",
        choices=lambda: OUTPUTS,
        check=_known_output,
    )
    batch: int = option(
        "Images per inference; TensorRT: or a range.", value=1, kind="batch", check=at_least(1)
    )
    batch_range: tuple[int, int] | None = None
    """The least and the most that TensorRT's engines take; None fixes them to `batch`."""
    embed_preprocess: bool = option(
        "Files take uint8 NHWC images, resized and cropped, and normalise them inside.",
        value=False,
        kind=bool,
    )
    calib_data: Path | None = option(
        "Calibration images.", value=None, kind=Path, default="the bundled set"
    )
    calib_count: int = option("How many of them.", value=512, kind=int, check=at_least(1))
    val_data: Path | None = option("Validation images, class/name.jpg.", value=None, kind=Path)
    val_count: int | None = option(
        "How many.",
        value=None,
        kind=int,
        default=f"all; {BUNDLED_VAL_COUNT} of the bundled set",
        check=at_least(1),
    )
    image_range: ImageRange | None = option(
        "What is black and white in images that do not say it: 16 bits, 32 bits, float.",
        value=None,
        kind="range",
        metavar="LOW,HIGH",
        default="the weights' own, else such images are left out",
        check=_refused_by(check_range),
    )
    max_drop: float = option(
        "Accepted top-1 drop in points; a file that exceeds it gets units back in float.",
        value=1.0,
        kind=float,
        metavar="PP",
        check=_unless(math.isfinite, "must be a number of points, such as 0.5 (100 accepts all)"),
    )
    confirm: bool = option(
        "Fail as well where the drop's interval reaches beyond --max-drop.", value=False, kind=bool
    )
    device: str | None = option(
        "That files run on, such as OpenVINO's GPU, NPU, AUTO or ONNX Runtime's CUDA.",
        value=None,
        default="the CPU",
    )
    gate_minutes: float = option(
        "Time to fall back to float for --max-drop, for each file.",
        value=10.0,
        kind=float,
        check=_unless(
            lambda value: 0 <= value < math.inf,
            "must be finite, and 0 or more (0 falls back nothing)",
        ),
    )
    sensitivity: bool = option("Measure what each part loses in INT8.", value=False, kind=bool)
    qat: int = option(
        "Fine-tune INT8 files' networks first.",
        value=0,
        kind=int,
        metavar="EPOCHS",
        check=_unless(
            lambda value: value >= 0, "must be a number of epochs, such as 3 (0 for none)"
        ),
    )
    qat_data: Path | None = option(
        "On these images, no labels needed.",
        value=None,
        kind=Path,
        default="the calibration images",
    )
    gpu_archs: tuple[str, ...] = option(
        "TensorRT-RTX: compute capabilities, such as sm86,sm89.",
        value=(),
        kind="archs",
        flag="--gpu-arch",
    )
    tune: bool | None = option(
        "OpenVINO's fastest settings: a longer search, or none.",
        value=None,
        kind=bool,
        flag="--tune/--no-tune",
        default="a search of ten seconds",
    )
    threads: int | None = option(
        "CPU threads of every runtime.",
        value=None,
        kind=int,
        default="all usable CPUs",
        check=at_least(1, MOST_THREADS),
    )
    bench_seconds: float = option(
        "Time spent on timing each file.",
        value=5.0,
        kind=float,
        check=_unless(lambda value: 0 < value < math.inf, "must be positive and finite"),
    )
    seed: int = option(
        "Of everything random.",
        value=0,
        kind=int,
        check=_unless(lambda value: 0 <= value < 2**63, "must be between 0 and 2^63 - 1"),
    )
    servers: tuple[str, ...] = option(
        "Write a model server's repository beside the bundle; may repeat. With --embed-preprocess.",
        value=(),
        flag="--for",
        many=True,
        choices=lambda: tuple(name for name, server in SERVERS.items() if server.runs_exports),
    )
    sign: tuple[Path, ...] = option(
        "Private key (PEM) to sign with: Ed25519, or elliptic for OpenSSF's format; may repeat.",
        value=(),
        kind=Path,
        metavar="KEY",
        many=True,
    )
    out: Path | None = option("The bundle's folder.", value=None, kind=Path, default="cmt_VARIANT")
    force: bool = option("Replace an existing bundle.", value=False, kind=bool)
    resume: bool = option("Go on with an interrupted run.", value=False, kind=bool)
    command: str = "cmt.export.export"
    """How the run was started, for the report."""

    def __post_init__(self) -> None:
        check_options(self)
        least, most = self.batch_range or (self.batch, self.batch)
        if not 1 <= least <= self.batch <= most:
            raise InputError("--batch must rise from its least to its most, such as 1:8:32")
        if most > MOST_IMAGES:
            raise InputError(f"--batch must be at most {MOST_IMAGES}")
        known = [TARGETS[name] for name in self.targets if name in TARGETS]
        if self.batch_range is not None and not any(t.takes_batch_range for t in known):
            raise InputError("a range of batches is for TensorRT's engines: give one, --batch 8")
        if self.qat and "int8" not in self.precisions:
            raise InputError("--qat fine-tunes for INT8: add --int8")
        if self.qat_data is not None and not self.qat:
            raise InputError("--qat-data is for fine-tuning: say for how many epochs with --qat")
        if self.servers and not self.embed_preprocess:
            raise InputError("--for serves files that normalise inside: add --embed-preprocess")
        if self.weights_key is not None and self.weights in (None, "demo", "random"):
            raise InputError("--weights-key chooses in a checkpoint: give it with --weights FILE")
        if not self.bundle.name:
            raise InputError(f"--out {self.out} has no name: name a folder in it, such as cmt")

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
        return repr(replace(self, out=None, resume=False, force=False, servers=(), command=""))

    @property
    def kind(self) -> str:
        """The same for runs that take about as long on one machine."""
        alike = replace(
            self,
            weights=None,
            weights_key=None,
            calib_data=self.calib_data and Path(),
            val_data=self.val_data and Path(),
            qat_data=self.qat_data and Path(),
            sign=(),
            seed=0,
        )
        return hashlib.sha256(alike.identity.encode()).hexdigest()[:16]

    @property
    def thread_count(self) -> int:
        """Threads of every runtime."""
        return self.threads or usable_cores()
