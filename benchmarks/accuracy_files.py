"""The files that benchmarks/accuracy.py compares, and what they answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contenders import fingerprint
from benchmarks.quantisers import (
    OutOfTimeError,
    make_modelopt_environment,
    modelopt_int8,
    nncf_controlled_int8,
    nncf_int8,
    onnxruntime_int8,
)
from cmt.bundle.reader import open_bundle
from cmt.calib_data.prepared import PreparedImages
from cmt.calib_data.sources import ImageSource
from cmt.errors import InputError
from cmt.export.images import Selection
from cmt.export.inputs import resolve
from cmt.export.onnx_graph import export_onnx, simplify_onnx
from cmt.export.options import ExportOptions
from cmt.export.pipeline import export, source_digest
from cmt.export.stages import Stages
from cmt.measure.latency import MOST_ROUNDS, measure_alternately
from cmt.measure.progress import ProgressBars
from cmt.measure.statistics import paired_ratio
from cmt.targets.base import SIMULATED, Array, run_all
from cmt.targets.machine import package_versions
from cmt.targets.registry import LOADERS, TARGETS
from cmt.targets.settings import Settings

MODELOPT = "0.47.0"
"""Version of NVIDIA ModelOpt."""


CONTROLLED_DROP = 0.003
"""What NNCF's accuracy control is asked to keep: a share, 0.3 points."""


REFERENCE_BATCH = 16


PLAIN = "OpenVINO FP32"


OURS = "ours, "


PEERS = "files/"
"""What the stages of other quantisers' files begin with."""


TITLES = {"openvino": "OpenVINO", "tensorrt": "TensorRT", "onnxruntime": "ONNX Runtime"}


Row = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """A file to judge.

    Attributes:
        name: unique in the set.
        runtime: one of `targets.registry.LOADERS`.
        stage: that made the file.
        settings: OpenVINO's properties.
        version: of what made it, where that is not among the environment's packages.
        reason: why there is none; None where there is.
    """

    name: str
    runtime: str
    stage: str
    path: Path
    settings: Settings | None = None
    version: str | None = None
    reason: str | None = None

    @property
    def timed(self) -> bool:
        """It runs here on the runtime that it is meant for."""
        return self.reason is None and self.runtime != SIMULATED


class ImageSet:
    """A network with its calibration and validation images, and every file made of them."""

    def __init__(self, options: ExportOptions, work: Path, progress: ProgressBars) -> None:
        self.options, self.progress = options, progress
        self.inputs = resolve(options, needs_calibration=True)
        if self.inputs.not_labelled is not None:
            raise InputError(f"no accuracy: {self.inputs.not_labelled}")
        common = {
            "versions": package_versions(),
            "weights": self.inputs.weights_sha256,
            "variant": options.variant,
        }
        self.stages = Stages(work, common)
        self.threads = options.thread_count
        inputs = self.inputs
        assert inputs.calibration is not None
        self.validation = self._prepare(
            "validation", inputs.validation, options.val_count, inputs.label_map
        )
        self.calibration = self._prepare("calibration", inputs.calibration, options.calib_count)

    def _prepare(
        self,
        name: str,
        source: ImageSource,
        count: int | None,
        label_map: dict[int, int] | None = None,
    ) -> PreparedImages:
        chosen = Selection(source, self.inputs.preprocessing, self.options.seed, count, label_map)
        return chosen.prepare(name, self.stages, self.progress)

    def _held_out(self) -> list[tuple[Array, int]]:
        """As many labelled calibration images as calibrate, others than those."""
        source, label_map = self.inputs.calibration, self.inputs.label_map
        assert source is not None
        if source.class_names != self.inputs.validation.class_names:
            raise InputError("NNCF's accuracy control needs calibration images in class folders")
        images = self._prepare("labelled", source, 2 * self.options.calib_count, label_map)
        assert images.labels is not None
        calibrating = set(self.calibration.keys)
        places = np.flatnonzero([key not in calibrating for key in images.keys])
        labels = images.labels[places].tolist()
        return list(zip(images.batches(1, places), labels, strict=True))

    # Files

    @cached_property
    def ours(self) -> Path:
        """The bundle that `cmt-export` makes of the same weights and calibration images."""

        def make(folder: Path) -> None:
            export(
                replace(
                    self.options,
                    precisions=("fp16", "int8"),
                    val_count=64,  # judged here, on all
                    tune=False,
                    bench_seconds=0.1,
                    max_drop=100.0,
                    out=folder / "bundle",
                )
            )

        inputs = {
            "sources": source_digest(),
            "targets": self.options.targets,
        }
        with self.progress.step("exporting ours"):
            bundle = self.stages.run("ours", inputs, make, ["images/calibration"]) / "bundle"
        used = open_bundle(bundle).manifest["calibration"]["sha256"]
        assert used == self.calibration.sha256, "ours was calibrated on other images"
        return bundle

    @cached_property
    def _graph(self) -> Path:
        """The network as torch writes it, simplified: what every other quantiser starts from."""

        def make(folder: Path) -> None:
            export_onnx(self.inputs.model, 1, folder / "exported.onnx")
            simplify_onnx(folder / "exported.onnx", folder / "plain.onnx")

        inputs = {"sources": fingerprint("cmt/network.py", "export/onnx_graph.py")}
        return self.stages.run("plain", inputs, make).absolute() / "plain.onnx"

    def contenders(self, modelopt: Path | None, control_seconds: float) -> Iterator[Contender]:
        """Every file of the table, made when it is asked for.

        Args:
            modelopt: a Python with ModelOpt; None makes an environment in the work folder.
            control_seconds: how long NNCF's accuracy control may take.
        """
        batches = list(self.calibration.batches(1))

        def control(path: Path) -> None:
            nncf_controlled_int8(
                self._graph,
                batches,
                self._held_out(),
                path,
                max_drop=CONTROLLED_DROP,
                seconds=control_seconds,
            )

        def nvidia(path: Path) -> None:
            python = modelopt or make_modelopt_environment(
                self.stages.workspace.parent.absolute() / "modelopt", MODELOPT
            )
            modelopt_int8(python, self._graph, batches, path)

        recipe = partial(nncf_int8, self._graph, batches)
        peers: dict[str, tuple[str, Callable[[Path], None], Row]] = {
            "NNCF default": ("openvino", partial(recipe, transformer=False), {}),
            "NNCF TRANSFORMER": ("openvino", partial(recipe, transformer=True), {}),
            "ONNX Runtime default": (
                "onnxruntime",
                partial(onnxruntime_int8, self._graph, batches),
                {},
            ),
            "NVIDIA ModelOpt default": (SIMULATED, nvidia, {"version": MODELOPT}),
            "NNCF accuracy control": (
                "openvino",
                control,
                {"seconds": control_seconds, "label_map": self.inputs.label_map},
            ),
        }
        yield Contender(PLAIN, "openvino", "plain", self._graph)
        yield from self._own()
        for name, peer in peers.items():
            yield self._peer(name, *peer)

    def _own(self) -> Iterator[Contender]:
        bundle = open_bundle(self.ours)
        for entry in bundle.artefacts:
            precision, title = entry["precision"], TITLES.get(entry["target"])
            if title is None or precision == "fp32":
                continue
            name = f"{OURS}{title} {precision.upper()}"
            if TARGETS[entry["target"]].simulated:
                path = self.ours / "model" / f"cmt_{self.options.variant}.{precision}.onnx"
                yield Contender(name, SIMULATED, "ours", path.absolute())
            else:
                path = bundle.file(entry).absolute()
                runtime = TARGETS[entry["target"]].runtime
                yield Contender(name, runtime, "ours", path, entry["settings"] or None)

    def _peer(
        self,
        name: str,
        runtime: str,
        quantise: Callable[[Path], None],
        inputs: Row,
    ) -> Contender:
        """Another quantiser's file; what it does not manage is a reason in the table.

        A failure is kept like a file: remove its folder to try again.
        """
        file = "int8.xml" if runtime == "openvino" else "int8.onnx"
        stage = f"{PEERS}{name}"

        def make(folder: Path) -> None:
            try:
                quantise(folder.absolute() / file)
            except (OutOfTimeError, RuntimeError) as error:
                (folder / "reason.txt").write_text(str(error))

        with self.progress.step(f"{self.options.variant}: {name}"):
            after = ["plain", "images/calibration"]
            sources = {"sources": fingerprint("benchmarks/quantisers.py")}
            folder = self.stages.run(stage, {**sources, **inputs}, make, after)
        reason = folder / "reason.txt"
        return Contender(
            name,
            runtime,
            stage,
            folder.absolute() / file,
            version=inputs.get("version"),
            reason=reason.read_text() if reason.exists() else None,
        )

    # Answers

    def reference(self) -> Array:
        """Logits of the torch network on the validation images."""
        model = self.inputs.model

        def run(batch: Array) -> list[Array]:
            with torch.inference_mode():
                return [model(torch.from_numpy(batch)).numpy()]

        torch.set_num_threads(self.threads)
        return self._answers("torch", lambda: run, REFERENCE_BATCH, ())

    def answers(self, contender: Contender) -> Array:
        """Logits of a file, loaded again, on the validation images."""
        load = partial(LOADERS[contender.runtime], contender.path, self.threads, contender.settings)
        return self._answers(contender.name, load, 1, (contender.stage,))

    def _answers(
        self, name: str, load: Callable[[], Any], batch: int, after: tuple[str, ...]
    ) -> Array:
        def make(folder: Path) -> None:
            total = len(self.validation)
            with self.progress.task(f"running {name}", total) as advance:
                batches = self.validation.batches(batch)
                np.save(folder / "logits.npy", run_all(load(), batches, total, advance)[0])

        folder = self.stages.run(f"answers/{name}", {}, make, ("images/validation", *after))
        return np.load(folder / "logits.npy")

    def times(self, contenders: list[Contender], seconds: float) -> dict[str, Row]:
        """p50 and the ratio to the first contender's, in the same rounds, of those that run."""
        timed = [contender for contender in contenders if contender.timed]

        def make(folder: Path) -> None:
            with self.progress.task("timing", MOST_ROUNDS) as advance:
                timings = measure_alternately(
                    {c.name: (c.runtime, c.path) for c in timed},
                    self.validation.batch(1),
                    self.threads,
                    seconds,
                    advance,
                    {c.name: c.settings for c in timed if c.settings is not None},
                )
            rounds = {
                name: [float(np.median(one)) for one in timing.rounds]
                for name, timing in timings.items()
            }
            times = {
                name: {
                    "p50": timings[name].latency["p50"],
                    "speedup": paired_ratio(own, rounds[timed[0].name]),
                }
                for name, own in rounds.items()
            }
            (folder / "times.json").write_text(json.dumps(times))

        inputs = {"seconds": seconds, "names": [c.name for c in timed], "threads": self.threads}
        after = ["images/validation", *dict.fromkeys(c.stage for c in timed)]
        return json.loads(
            (self.stages.run("times", inputs, make, after) / "times.json").read_text()
        )
