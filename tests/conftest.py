"""Fixtures that several folders of tests share."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tensorrt_double import Machine, make_cuda, make_tensorrt

from cmt.checkpoints import load_model, to_public_layout
from cmt.network import CMT, build
from cmt.rewrite import InferenceCMT, rewrite_for_inference
from cmt.variants import FAMILIES, VARIANTS, Variant
from export import export, tensorrt
from export.pipeline import Bundle
from export.targets import TARGETS
from export.tensorrt import Gpu
from measure.bundle import file_entries, write_manifest

# The tensors here are small, and OpenMP's threads wait by spinning where cores are busy.
torch.set_num_threads(1)

REFERENCE = Path(__file__).parent / "reference"
SHARED = Path(__file__).parents[1].parent / "shared"
SIZE = 32
GPU = Gpu("sm87", "Orin", "CUDA 12.6")
TINY = Variant("tiny", 32, 8, (8, 16, 32, 64), (1, 1, 2, 1), {"official": 3.6, "flyegle": 3.6})


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """`install("tensorrt 10.3.0", gpu=GPU)`: this TensorRT, CUDA and GPU, or none, simulated.

    Further arguments are those of `tensorrt_double.Machine`.
    """

    def make(
        version: str, gpu: Gpu | None = GPU, cuda: str = "cuda 13.5.0", **what: Any
    ) -> Machine:
        machine = Machine(version, **what)
        runtime = make_cuda(machine, cuda)
        bindings = ModuleType("cuda.bindings")
        bindings.runtime = runtime  # type: ignore[attr-defined]
        modules = {
            "tensorrt": make_tensorrt(machine),
            "cuda": ModuleType("cuda"),
            "cuda.bindings": bindings,
            "cuda.bindings.runtime": runtime,
        }
        for name, module in modules.items():
            module.__spec__ = ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(tensorrt, "find_gpu", lambda: gpu)
        return machine

    return make


@pytest.fixture
def shared() -> Path:
    """The developers' reference data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the reference data in {SHARED}")
    return SHARED


@pytest.fixture
def layout(request: pytest.FixtureRequest) -> Callable[[str], dict[str, Any]]:
    """`layout("official_ti")`: keys and shapes of a published checkpoint.

    Those of ti are kept here, the others with the developers' reference data.
    """

    def read(name: str) -> dict[str, Any]:
        path = REFERENCE / f"{name}.json"
        if not path.is_file():
            path = request.getfixturevalue("shared") / "checkpoint_layouts" / path.name
        return json.loads(path.read_text())

    return read


@pytest.fixture
def filling() -> ModuleType:
    """The module that makes deterministic weights and inputs from a layout."""
    spec = importlib.util.spec_from_file_location("layout_filling", REFERENCE / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Variant:
    """A network of a few thousand weights, usable under the name `tiny` during the test."""
    monkeypatch.setitem(VARIANTS, TINY.name, TINY)
    return TINY


@pytest.fixture
def make_tiny(tiny: Variant) -> Callable[..., CMT]:
    """`make_tiny(family, img_size=64, num_classes=5, seed=0)`: random weights, evaluation mode.

    Every weight and statistic is random, position tables too, so that each one matters.
    """

    def make(
        family: str, img_size: int | tuple[int, int] = 64, num_classes: int = 5, seed: int = 0
    ) -> CMT:
        model = build(tiny.name, family, img_size, num_classes)
        rng = torch.Generator().manual_seed(seed)
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=rng)
            elif value.is_floating_point():
                value.normal_(0.0, 0.3, generator=rng)
        return model.eval()

    return make


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[..., Path]:
    """`make_images("cat/a.png", "b.jpg", size=(40, 30), root="images")`: noisy pictures."""

    def make(*names: str, size: tuple[int, int] = (40, 30), root: str = "images") -> Path:
        for seed, name in enumerate(names):
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
            Image.fromarray(pixels).save(path)
        return tmp_path / root

    return make


@pytest.fixture(scope="session")
def tiny_network() -> Callable[..., CMT]:
    """`tiny_network(family, num_classes=5)`: its normalisations do something, as after training."""

    def make(family: str, num_classes: int = 5) -> CMT:
        torch.manual_seed(0)
        model = CMT(TINY, FAMILIES[family], (64, 64), num_classes).eval()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.uniform_(0.2, 1.0)
        return model

    return make


@pytest.fixture(scope="session")
def float_graph(
    tmp_path_factory: pytest.TempPathFactory, tiny_network: Callable[[str], CMT]
) -> Callable[[str], Path]:
    """`float_graph(family)`: simplified float32 ONNX of a tiny network, input (2, 3, 64, 64)."""
    folder = tmp_path_factory.mktemp("graphs")
    return lambda family: _graph(folder / f"{family}.onnx", tiny_network(family))


@pytest.fixture(scope="session")
def rewritten_graph(
    tmp_path_factory: pytest.TempPathFactory, tiny_network: Callable[[str], CMT]
) -> Callable[[str], Path]:
    """The same of the network rewritten for inference."""
    folder = tmp_path_factory.mktemp("rewritten")
    return lambda family: _graph(
        folder / f"{family}.onnx", rewrite_for_inference(tiny_network(family))
    )


def _graph(path: Path, model: CMT | InferenceCMT) -> Path:
    from export.onnx_graph import export_onnx, simplify_onnx

    if not path.exists():
        raw = path.with_suffix(".raw")
        export_onnx(model, 2, raw)
        simplify_onnx(raw, path)
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of ten pictures that differ in colour, one more that is no picture."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, channel in (("red", 0), ("blue", 2)):
        (root / name).mkdir()
        for i in range(10):
            pixels = rng.integers(0, 120, (40, 48, 3), np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    (root / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights for CMT-Ti at 32 pixels with two labelled classes."""
    torch.manual_seed(1)
    return _save_labelled(load_model("ti", img_size=SIZE, num_classes=2), tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_weights(
    tiny_network: Callable[..., CMT], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A file of `tiny_network`'s weights with two labelled classes."""
    return _save_labelled(tiny_network("official", 2), tmp_path_factory)


def _save_labelled(model: CMT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / f"{model.variant.name}.safetensors"
    state = {key: value.contiguous() for key, value in to_public_layout(model).items()}
    save_file(state, path, {"labels": json.dumps(["blue", "red"])})
    return path


@pytest.fixture(scope="session")
def bundle(photos: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """CMT-Ti at 32 pixels, batch 3, exported to every target; not to be changed."""
    return _export(photos, weights, tmp_path_factory, precisions=("fp16", "int8"))


@pytest.fixture(scope="session")
def uint8_bundle(photos: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same with the preprocessing inside the files."""
    return _export(photos, weights, tmp_path_factory, precisions=("int8",), embed_preprocess=True)


def _export(
    photos: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory, **options: Any
) -> Bundle:
    available = tuple(name for name, target in TARGETS.items() if target.missing() is None)
    return export(
        variant="ti",
        targets=available,
        weights=str(weights),
        calib_data=photos,
        val_data=photos,
        batch=3,
        gpu_archs=("sm86",) if "tensorrt" in available else (),
        out=tmp_path_factory.mktemp("out") / "bundle",
        bench_seconds=0.1,
        max_drop=100.0,
        **options,
    )


@pytest.fixture(scope="session")
def openvino_bundle(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bundle` with no files but OpenVINO's FP32 and INT8 ones; not to be changed."""
    folder = tmp_path_factory.mktemp("openvino") / "bundle"
    shutil.copytree(bundle.path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    kept = [
        entry
        for entry in manifest["artefacts"]
        if entry["target"] == "openvino" and entry["precision"] in ("fp32", "int8")
    ]
    for entry in file_entries([a for a in manifest["artefacts"] if a not in kept]):
        (folder / entry["path"]).unlink()
    write_manifest(folder, {**manifest, "artefacts": kept})
    return folder
