"""Everything that gets timed, as files: kept, and made anew where what they depend on changes.

Calibration is on random numbers: the ranges decide what an INT8 file answers, not how fast.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.contender_worker import COMPILED
from benchmarks.other_networks import CMT_TOP1, RIVALS, Rival, randomise
from benchmarks.quantisers import nncf_int8, onnxruntime_int8, quiet
from cmt.bundle.reader import open_bundle
from cmt.export.onnx_graph import INPUT_NAME, OPSET, export_onnx, simplify_onnx
from cmt.export.options import ExportOptions
from cmt.export.pipeline import export, source_digest
from cmt.export.stages import Stages
from cmt.layouts import to_public_layout
from cmt.network import build, count_macs
from cmt.targets.base import Array
from cmt.targets.machine import package_versions
from cmt.targets.openvino import OPENVINO_SETTINGS
from cmt.targets.settings import PRECISION, Settings

CALIBRATION_BATCHES = 4
CALIBRATION_IMAGES = 16
PEAK_SIDE = 2048
"""Of the square matrices whose product stands for the INT8 multiply peak."""

PLAIN = "plain FP32"
PLAIN_BF16 = "plain BF16"
NNCF_DEFAULT = "plain NNCF default"
NNCF_TRANSFORMER = "plain NNCF TRANSFORMER"
NNCF_DEFAULT_BF16 = f"{NNCF_DEFAULT}, BF16"
NNCF_TRANSFORMER_BF16 = f"{NNCF_TRANSFORMER}, BF16"
"""What these recipes leave float is FP32, or BF16: OpenVINO's own choice where the CPU has it."""
OURS_FP32 = "ours FP32"
OURS_INT8 = "ours INT8"
PEAK = "INT8 matrix product"
OWN_CHOICE = {name: value for name, value in OPENVINO_SETTINGS.items() if name != PRECISION}
"""OpenVINO chooses what type the float rest of an INT8 file has: BF16 where the CPU has it."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Contender:
    """One file and how it is run.

    Attributes:
        name: unique in its group.
        network: what it computes, such as `CMT-Ti` or `ResNet-50`.
        precision: FP32, BF16 or INT8.
        runtime: one of `targets.registry.LOADERS` or of `benchmarks.contender_worker`.
        shape: of the input, one inference.
        macs: multiply-adds of one inference, as counted in the torch network.
        top1: published ImageNet top-1 in percent; None for what is no classifier.
        settings: OpenVINO's properties.
        key: of the stage that made the file; changes with its content.
        reason: why it cannot be measured here; None where it can.
    """

    name: str
    network: str
    precision: str
    runtime: str
    path: Path
    shape: Shape
    macs: int
    top1: float | None
    settings: Settings | None
    key: str
    reason: str | None = None


class Files:
    """The contenders of one work folder."""

    def __init__(self, work: Path) -> None:
        self._stages = Stages(work, {"versions": package_versions()})

    # CMT

    def runtimes(self, variant: str, batch: int) -> list[Contender]:
        """The plain network on everything that a user of torch has at hand."""
        reference = self._reference(variant)
        graph = self._plain(variant, batch)

        def make(folder: Path) -> None:
            onnxruntime_int8(
                graph, _random_batches(self._shape(variant, batch)), folder / "plain.onnx"
            )

        name = f"{variant}-{batch}/ort"
        after = [f"{variant}-{batch}/plain"]
        inputs = {"batches": CALIBRATION_BATCHES}
        quantised = self._stages.run(name, inputs, make, after) / "plain.onnx"
        rows = (
            (PLAIN, "FP32", "openvino", graph, None),
            ("torch eager", "FP32", "torch", reference, None),
            ("torch.compile", "FP32", COMPILED, reference, compile_problem()),
            ("ONNX Runtime FP32", "FP32", "onnxruntime", graph, None),
            ("ONNX Runtime INT8", "INT8", "onnxruntime", quantised, None),
        )
        return [
            *(
                self._cmt(variant, batch, name, precision, runtime, path, reason=reason)
                for name, precision, runtime, path, reason in rows
            ),
            self.peak(),
        ]

    def graphs(self, variant: str, batch: int) -> list[Contender]:
        """The plain graph in OpenVINO with generic recipes, our files, and the multiply peak."""
        graph = self._plain(variant, batch)
        shape = self._shape(variant, batch)
        bf16 = {**OPENVINO_SETTINGS, PRECISION: "bf16"}
        generic = self._nncf(f"{variant}-{batch}", graph, shape, transformer=False)
        transformer = self._nncf(f"{variant}-{batch}", graph, shape, transformer=True)
        return [
            self._cmt(variant, batch, PLAIN, "FP32", "openvino", graph),
            self._cmt(variant, batch, PLAIN_BF16, "BF16", "openvino", graph, bf16),
            *(
                self._cmt(variant, batch, name, "INT8", "openvino", path, settings)
                for name, path, settings in (
                    (NNCF_DEFAULT, generic, None),
                    (NNCF_DEFAULT_BF16, generic, bf16),
                    (NNCF_TRANSFORMER, transformer, None),
                    (NNCF_TRANSFORMER_BF16, transformer, bf16),
                )
            ),
            *self._ours(variant, batch, ("fp32", "int8")),
            self.peak(),
        ]

    def rivals(self, variant: str, batch: int, names: tuple[str, ...]) -> list[Contender]:
        """CMT, and other networks at their own input sizes, FP32 and INT8."""
        return [
            self._cmt(variant, batch, PLAIN, "FP32", "openvino", self._plain(variant, batch)),
            *self._ours(variant, batch, ("int8",)),
            *(contender for name in names for contender in self._rival(RIVALS[name], batch)),
            self.peak(),
        ]

    def peak(self) -> Contender:
        """A large INT8 matrix product: as many multiply-adds a second as the machine has."""

        def make(folder: Path) -> None:
            import openvino as ov

            ov.save_model(int8_product(PEAK_SIDE), folder / "peak.xml", compress_to_fp16=False)

        path = self._stages.run("peak", {"side": PEAK_SIDE}, make) / "peak.xml"
        shape = (PEAK_SIDE, PEAK_SIDE)
        settings, key = OPENVINO_SETTINGS, _key(path)
        macs = PEAK_SIDE**3
        return Contender(PEAK, PEAK, "INT8", "openvino", path, shape, macs, None, settings, key)

    def _cmt(
        self,
        variant: str,
        batch: int,
        name: str,
        precision: str,
        runtime: str,
        path: Path,
        settings: Settings | None = None,
        reason: str | None = None,
    ) -> Contender:
        if runtime == "openvino" and settings is None:
            settings = OPENVINO_SETTINGS
        return Contender(
            name,
            f"CMT-{variant.capitalize()}",
            precision,
            runtime,
            path,
            self._shape(variant, batch),
            batch * json.loads((self._reference(variant).with_name("macs.json")).read_text()),
            CMT_TOP1[variant],
            settings,
            _key(path),
            reason,
        )

    def _shape(self, variant: str, batch: int) -> Shape:
        config = json.loads(self._reference(variant).read_text())
        return (batch, 3, *config["img_size"])

    def _reference(self, variant: str) -> Path:
        """`network.json` with the same weights beside it for torch and for the product."""

        def make(folder: Path) -> None:
            torch.manual_seed(0)
            model = build(variant).eval()
            randomise(model)
            torch.save(model.state_dict(), folder / "weights.pt")
            state = {name: value.contiguous() for name, value in to_public_layout(model).items()}
            save_file(state, folder / "weights.safetensors")
            (folder / "macs.json").write_text(json.dumps(count_macs(model, model.img_size)))
            config = {"variant": variant, "img_size": model.img_size}
            (folder / "network.json").write_text(json.dumps(config))

        inputs = {"sources": fingerprint("cmt/network.py", "benchmarks/other_networks.py")}
        return self._stages.run(f"{variant}/reference", inputs, make) / "network.json"

    def _plain(self, variant: str, batch: int) -> Path:
        """The network as torch writes it, simplified."""
        reference = self._reference(variant)

        def make(folder: Path) -> None:
            from cmt.targets.reference import torch_network

            export_onnx(torch_network(reference), batch, folder / "exported.onnx")
            simplify_onnx(folder / "exported.onnx", folder / "plain.onnx")

        inputs = {"sources": fingerprint("export/onnx_graph.py")}
        name = f"{variant}-{batch}/plain"
        return self._stages.run(name, inputs, make, [f"{variant}/reference"]) / "plain.onnx"

    def _ours(self, variant: str, batch: int, precisions: tuple[str, ...]) -> list[Contender]:
        """What `cmt-export` makes of the same weights, with the settings that it names."""
        weights = self._reference(variant).with_name("weights.safetensors")

        def make(folder: Path) -> None:
            with tempfile.TemporaryDirectory() as images:
                _write_images(Path(images))
                export(
                    ExportOptions(
                        variant,
                        ("openvino",),
                        ("int8",),
                        weights=weights,
                        batch=batch,
                        calib_data=Path(images),
                        calib_count=CALIBRATION_IMAGES,
                        tune=False,
                        bench_seconds=0.1,
                        max_drop=100,
                        out=folder / "bundle",
                    )
                )

        inputs = {"sources": source_digest()}
        after = [f"{variant}/reference"]
        folder = self._stages.run(f"{variant}-{batch}/ours", inputs, make, after)
        bundle = open_bundle(folder / "bundle")
        files = {entry["precision"]: entry for entry in bundle.artefacts}
        names = {"fp32": OURS_FP32, "int8": OURS_INT8}
        return [
            self._cmt(
                variant,
                batch,
                names[precision],
                precision.upper(),
                "openvino",
                bundle.file(files[precision]).absolute(),
                files[precision]["settings"],
            )
            for precision in precisions
        ]

    # Others

    def _rival(self, rival: Rival, batch: int) -> list[Contender]:
        shape = (batch, 3, rival.img_size, rival.img_size)

        def make(folder: Path) -> None:
            torch.manual_seed(0)
            model = rival.build()
            randomise(model)
            _export_rival(model, shape, folder / "exported.onnx")
            simplify_onnx(folder / "exported.onnx", folder / "plain.onnx")
            (folder / "macs.json").write_text(json.dumps(batch * count_macs(model, shape[2:])))

        inputs = {
            "transformers": version("transformers"),
            "sources": fingerprint("benchmarks/other_networks.py"),
        }
        name = f"{rival.name}-{batch}"
        graph = self._stages.run(f"{name}/plain", inputs, make) / "plain.onnx"
        quantised = self._nncf(name, graph, shape, rival.transformer)
        macs = json.loads(graph.with_name("macs.json").read_text())
        return [
            Contender(
                f"{rival.name} {precision}",
                rival.name,
                precision,
                "openvino",
                path,
                shape,
                macs,
                rival.top1,
                settings,
                _key(path),
            )
            for precision, path, settings in (
                ("FP32", graph, OPENVINO_SETTINGS),
                ("INT8", quantised, OWN_CHOICE),
            )
        ]

    def _nncf(self, name: str, graph: Path, shape: Shape, transformer: bool) -> Path:
        def make(folder: Path) -> None:
            batches = list(_random_batches(shape))
            nncf_int8(graph, batches, folder / "int8.xml", transformer=transformer)

        recipe = "transformer" if transformer else "default"
        inputs = {"batches": CALIBRATION_BATCHES}
        folder = self._stages.run(f"{name}/nncf-{recipe}", inputs, make, [f"{name}/plain"])
        return folder / "int8.xml"


def describe(contender: Contender) -> dict[str, Any]:
    """What the results say of a contender besides its times."""
    content = asdict(contender)
    for name in ("path", "key"):
        del content[name]
    return content


@cache
def compile_problem() -> str | None:
    """Why `torch.compile` does not work here; None where it does."""
    try:
        torch.compile(torch.nn.Linear(8, 8))(torch.zeros(1, 8))
    except Exception as error:  # whatever inductor and its C++ compiler raise
        return f"torch.compile fails: {str(error).strip().splitlines()[0]}"
    return None


def int8_product(side: int) -> Any:
    """An OpenVINO model of one `side` x `side` matrix product in INT8, quantiser included."""
    import openvino as ov
    from openvino import opset13 as op

    random = np.random.default_rng(0)
    weights = random.standard_normal((side, side), np.float32)
    scale = np.abs(weights).max(axis=1, keepdims=True) / 127
    rounded = op.constant(np.round(weights / scale).astype(np.int8))
    dequantised = op.multiply(op.convert(rounded, "f32"), op.constant(scale))
    source = op.parameter([side, side], np.float32, name=INPUT_NAME)
    low, high = np.float32(-4), np.float32(4)
    quantised = op.fake_quantize(source, low, high, low, high, 256)
    product = op.matmul(quantised, dequantised, transpose_a=False, transpose_b=True)
    return ov.Model([product], [source], "int8_product")


def _key(path: Path) -> str:
    """The key of the stage that a file is in."""
    marker = next(
        parent / "stage.key" for parent in path.parents if (parent / "stage.key").exists()
    )
    return marker.read_text()


def fingerprint(*sources: str) -> str:
    """Of source files, and of all Python files of folders, in this repository."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for source in sources:
        path = root / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _random_batches(shape: Shape) -> Iterator[Array]:
    random = np.random.default_rng(0)
    for _ in range(CALIBRATION_BATCHES):
        yield random.standard_normal(shape, np.float32)


def _write_images(folder: Path) -> None:
    """Photos of noise, for a command that takes a folder."""
    from PIL import Image

    random = np.random.default_rng(0)
    for i in range(CALIBRATION_IMAGES):
        pixels = random.integers(0, 256, (256, 256, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def _export_rival(model: torch.nn.Module, shape: Shape, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with quiet(), torch.no_grad():
        torch.onnx.export(
            model,
            (torch.zeros(shape),),
            path,
            input_names=[INPUT_NAME],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
