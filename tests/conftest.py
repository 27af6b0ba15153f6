"""Fixtures that several folders of tests share."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from exported_once import export_once
from filelock import FileLock
from hypothesis import settings
from made_up_timings import measure_nothing
from PIL import Image
from safetensors.torch import save_file
from tensorrt_double import Machine, modules_of
from tiny_variant import TINY

from cmt.bundle import placing
from cmt.bundle.manifest import file_entries
from cmt.bundle.writer import write_manifest
from cmt.checkpoints import load_model
from cmt.commands import main
from cmt.commands.cmt_export import export_cli
from cmt.export import export, file_maker, graph_maker
from cmt.export.pipeline import Bundle
from cmt.layouts import to_public_layout
from cmt.measure import latency
from cmt.network import CMT, build
from cmt.quantize.recipe import RECIPES, TENSOR_CORES
from cmt.rewrite import InferenceCMT, rewrite_for_inference
from cmt.targets.machine import cuts_int8_sums, describe
from cmt.targets.reference import TORCH
from cmt.targets.registry import TARGETS
from cmt.targets.tensorrt import device
from cmt.targets.tensorrt.device import Gpu
from cmt.tensor_cores import fit_tensor_cores
from cmt.variants import FAMILIES, VARIANTS, Variant

# The tensors here are small, and OpenMP's threads wait by spinning where cores are busy.
torch.set_num_threads(1)
# Other tests run at the same time, so how long an example takes says little.
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")

REFERENCE = Path(__file__).parent / "reference"
SHARED = Path(__file__).parents[1].parent / "shared"
SIZE = 32
MadeOnce = Callable[[str, Callable[[Path], object]], Path]
GPU = Gpu("sm87", "Orin", "CUDA 12.6")


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A bundle of one's own that an earlier version made: INT8 files of OpenVINO, in BF16, and ONNX
    Runtime; two labels; without torch's answers."""
    archive = Path(__file__).parent / "reference" / "bundles" / "schema_1.zip"
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def exact_int8_sums() -> None:
    """Skips where INT8 kernels do not compute what a file says."""
    if cuts_int8_sums(describe(seed=0)):
        pytest.skip("this CPU has no VNNI: its INT8 kernels cut off large sums")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """`install("tensorrt 10.3.0", gpu=GPU)`: this TensorRT, CUDA and GPU, or none, simulated.

    Further arguments are those of `tensorrt_double.Machine`.
    """

    def make(
        version: str, gpu: Gpu | None = GPU, cuda: str = "cuda 13.5.0", **what: Any
    ) -> Machine:
        machine = Machine(version, **what)
        for name, module in modules_of(machine, cuda).items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(device, "find_gpu", lambda: gpu)
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
def tiny_in_process(monkeypatch: pytest.MonkeyPatch, exported: Path) -> None:
    """The tiny network is a variant that `export.export` and `cmt-export` take in this process.

    Nothing is timed; `bundle` and `uint8_bundle` are.
    """
    _take_tiny(monkeypatch, exported)
    monkeypatch.setattr(file_maker, "measure_alternately", measure_nothing)


def _take_tiny(patch: pytest.MonkeyPatch, exported: Path) -> None:
    patch.setitem(VARIANTS, TINY.name, TINY)
    (option,) = [option for option in export_cli.params if option.name == "variant"]
    patch.setattr(option, "type", click.Choice(list(VARIANTS)))
    patch.setattr(graph_maker, "export_onnx", export_once(exported))


def _time_tiny(patch: pytest.MonkeyPatch) -> None:
    measure = file_maker.measure_alternately

    def measure_files(files: dict[str, Any], *arguments: Any) -> Any:
        # Processes of their own do not know the tiny network: its plain graph stands in.
        if TORCH in files:
            workspace = files[TORCH][1].parents[1]
            files = {**files, TORCH: ("onnxruntime", workspace / "graph" / "onnx" / "graph.onnx")}
        return measure(files, *arguments)

    patch.setattr(file_maker, "measure_alternately", measure_files)


@pytest.fixture(scope="session", autouse=True)
def short_warm_up() -> Iterator[None]:
    """No test hangs on what is timed, so that caches need not be warm."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "WARM_UP_SECONDS", 0.01)
        yield


@pytest.fixture(scope="session")
def with_tiny() -> dict[str, str]:
    """The environment of processes that know the tiny network."""
    folder = Path(__file__).parent / "support" / "everywhere"
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.fixture
def run_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """`run_command(command, *arguments)`: its exit status and what it printed, on each stream."""

    def call(command: str, *arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [command, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main.run(command)
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


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
def made_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> MadeOnce:
    """`made_once(name, make)`: a path that `make` wrote to, once for all workers of the run."""
    root = tmp_path_factory.getbasetemp()
    root = (root if worker_id == "master" else root.parent) / "made_once"
    root.mkdir(exist_ok=True)

    def path_of(name: str, make: Callable[[Path], object]) -> Path:
        path, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                make(path)
                done.touch()
        return path

    return path_of


@pytest.fixture(scope="session")
def exported(made_once: MadeOnce) -> Path:
    """Where the graphs are kept that torch's exporter made of small networks."""
    return made_once("exported", Path.mkdir)


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[None]:
    """A cache of the run's own in place of the user's: workers use each other's engines."""
    root = tmp_path_factory.getbasetemp()
    root = root if worker_id == "master" else root.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        yield


@pytest.fixture(scope="session")
def float_graph(made_once: MadeOnce, tiny_network: Callable[[str], CMT]) -> Callable[[str], Path]:
    """`float_graph(family)`: simplified float32 ONNX of a tiny network, input (2, 3, 64, 64)."""
    return lambda family: made_once(
        f"{family}.onnx", lambda path: _write_graph(tiny_network(family), path)
    )


@pytest.fixture(scope="session")
def rewritten_graph(
    made_once: MadeOnce, tiny_network: Callable[[str], CMT]
) -> Callable[[str], Path]:
    """The same of the network rewritten for inference."""
    return lambda family: made_once(
        f"{family}-rewritten.onnx",
        lambda path: _write_graph(rewrite_for_inference(tiny_network(family)), path),
    )


@pytest.fixture(scope="session")
def tiles_graph(made_once: MadeOnce, tiny_network: Callable[[str], CMT]) -> Callable[[str], Path]:
    """The same of the network in TensorRT's form, with products on tokens where INT8 has them."""

    def is_int8(path: str) -> bool:
        return RECIPES[TENSOR_CORES].is_int8([f"{path}.weight"], depthwise=False)

    return lambda family: made_once(
        f"{family}-tiles.onnx",
        lambda path: _write_graph(fit_tensor_cores(tiny_network(family), is_int8), path),
    )


def _write_graph(model: CMT | InferenceCMT, path: Path) -> None:
    from cmt.export.onnx_graph import export_onnx, simplify_onnx

    raw = path.with_suffix(".raw")
    export_onnx(model, 2, raw)
    simplify_onnx(raw, path)


@pytest.fixture(scope="session")
def photos(made_once: MadeOnce) -> Path:
    """Two classes of ten pictures that differ in colour, one more that is no picture."""
    return made_once("photos", _write_photos)


def _write_photos(root: Path) -> None:
    rng = np.random.default_rng(0)
    for name, channel in (("red", 0), ("blue", 2)):
        (root / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 120, (40, 48, 3), np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    (root / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")


@pytest.fixture(scope="session")
def weights(made_once: MadeOnce) -> Path:
    """A file of random weights for CMT-Ti at 32 pixels with two labelled classes."""
    torch.manual_seed(1)
    model = load_model("ti", img_size=SIZE, num_classes=2)
    return made_once("ti.safetensors", partial(_save_labelled, model))


@pytest.fixture(scope="session")
def tiny_weights(tiny_network: Callable[..., CMT], made_once: MadeOnce) -> Path:
    """A file of `tiny_network`'s weights with two labelled classes."""
    model = tiny_network("official", 2)
    return made_once("tiny.safetensors", partial(_save_labelled, model))


@pytest.fixture(scope="session")
def save_labelled() -> Callable[..., None]:
    """`save_labelled(model, path, labels)`: its weights as a file, by default with two classes."""
    return _save_labelled


def _save_labelled(model: CMT, path: Path, labels: Sequence[str] = ("blue", "red")) -> None:
    state = {key: value.contiguous() for key, value in to_public_layout(model).items()}
    save_file(state, path, {"labels": json.dumps(labels)})


@pytest.fixture(scope="session")
def bundle(photos: Path, tiny_weights: Path, exported: Path, made_once: MadeOnce) -> Bundle:
    """The tiny network, batch 3, exported to every target; not to be changed."""
    make = partial(_export, photos, tiny_weights, precisions=("fp16", "int8"))
    return _read(made_once("bundle", make))


@pytest.fixture(scope="session")
def uint8_bundle(photos: Path, tiny_weights: Path, bundle: Bundle, made_once: MadeOnce) -> Bundle:
    """The same with the preprocessing inside the files, signed: `.pub.pem` is beside it."""
    make = partial(_export_signed, photos, tiny_weights, bundle.path)
    return _read(made_once("uint8_bundle", make))


def _export_signed(photos: Path, weights: Path, finished: Path, out: Path) -> None:
    key = Ed25519PrivateKey.generate()
    private, public = out.with_suffix(".pem"), out.with_suffix(".pub.pem")
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    _lend_stages(finished, out)  # the float graphs of both are the same
    options = {"precisions": ("int8",), "embed_preprocess": True, "resume": True}
    _export(photos, weights, out, sign=private, **options)


def _read(path: Path) -> Bundle:
    return Bundle(path, json.loads(_returned(path).read_text()))


@pytest.fixture
def resumable(bundle: Bundle) -> Callable[[Path], Path]:
    """`resumable(out)`: an export there with `small`'s options finds the stages of `bundle` made.

    Without them an export of the same network would take five times as long.
    """

    def prepare(out: Path) -> Path:
        _lend_stages(bundle.path, out)
        return out

    return prepare


@pytest.fixture
def small(photos: Path, tiny_weights: Path, tiny_in_process: None) -> str:
    """Options for cmt-export that put the tiny network in the place of any, in this process."""
    return (
        f"--variant tiny --weights {tiny_weights} --calib-data {photos} --val-data {photos} "
        "--batch 3 --gpu-arch sm86 --no-tune --bench-seconds 0.1 --max-drop 100 --resume"
    )


def _stages(bundle: Path) -> Path:
    """Where the stages of an export are kept that would have been removed."""
    return bundle.with_suffix(".stages")


def _lend_stages(finished: Path, out: Path) -> None:
    """An export to `out` that resumes finds the stages of a finished bundle made."""
    shutil.copytree(_stages(finished), placing.workspace_folder(out), copy_function=os.link)


def _returned(bundle: Path) -> Path:
    """Where the report that `export` returned is kept for the other workers."""
    return bundle.with_suffix(".returned.json")


def _export(photos: Path, weights: Path, out: Path, **options: Any) -> None:
    available = tuple(name for name, target in TARGETS.items() if target.missing() is None)
    place = placing.place

    def keep_stages(finished: Path, *arguments: Any) -> None:
        left_out = shutil.ignore_patterns(finished.name)
        shutil.copytree(finished.parent, _stages(out), copy_function=os.link, ignore=left_out)
        place(finished, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        _take_tiny(patch, out.with_name("exported"))
        _time_tiny(patch)
        patch.setattr(placing, "place", keep_stages)
        made = _export_to(out, available, photos, weights, **options)
    _returned(out).write_text(json.dumps(made.report))


def _export_to(
    out: Path, available: tuple[str, ...], photos: Path, weights: Path, **options: Any
) -> Bundle:
    return export(
        variant="tiny",
        targets=available,
        weights=str(weights),
        calib_data=photos,
        val_data=photos,
        batch=3,
        gpu_archs=("sm86",) if "tensorrt" in available else (),
        out=out,
        tune=False,
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


@pytest.fixture(scope="session", autouse=True)
def no_progress_lines() -> Iterator[None]:
    """What commands say on standard error does not hang on how long they take here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cmt.measure.progress.LINE_SECONDS", 3600.0)
        yield
