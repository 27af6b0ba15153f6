"""Engines: built for the machine they are on, checked, run and timed, on a simulated GPU."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorrt_double import CUDA_VERSIONS, VERSIONS, Machine

from cmt.bundle.golden import verify
from cmt.bundle.reader import open_bundle
from cmt.bundle.writer import write_manifest
from cmt.errors import GateError, InputError
from cmt.export.pipeline import Bundle
from cmt.measure import bench
from cmt.measure.bench import Sweep
from cmt.measure.disturbance import Usage
from cmt.measure.rebuild import build_for_here, notes, why_none_is_built
from cmt.measure.timing import Timing
from cmt.measure.worker import burst
from cmt.report.document import report_of
from cmt.targets.base import SIMULATED
from cmt.targets.registry import LOADERS, TARGETS, not_runnable
from cmt.targets.tensorrt.build import BuildSettings
from cmt.targets.tensorrt.device import Gpu
from cmt.targets.tensorrt.engine import load_engine

PLAN = b"an engine"
SETTINGS = {
    "library": "tensorrt",
    "sha256": hashlib.sha256(PLAN).hexdigest(),
    "cuda_graph": "on",
    "dla": None,
    "host_code": False,
    "trusted": True,
}
IMAGES = np.arange(3 * 32 * 32, dtype=np.float32).reshape(1, 3, 32, 32) / 1000
Install = Callable[..., Machine]

needs_engines = pytest.mark.skipif(
    TARGETS["tensorrt"].missing() is not None, reason="needs tensorrt-rtx"
)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "cmt.engine"
    path.write_bytes(PLAN)
    return path


@contextmanager
def no_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda steps: None


@pytest.mark.parametrize("cuda", CUDA_VERSIONS)
@pytest.mark.parametrize("version", ["tensorrt 8.6.1", *VERSIONS])
@pytest.mark.parametrize("graph", ["on", "off"])
def test_an_engine_runs_with_and_without_a_cuda_graph(
    install: Install, engine: Path, version: str, cuda: str, graph: str
) -> None:
    machine = install(version, cuda=cuda)
    runner = load_engine(engine, {**SETTINGS, "cuda_graph": graph}, None)
    assert "IExecutionContext.execute_async_v3" not in machine.asked  # loading runs nothing
    for factor in (1, 2, 3):
        (logits,) = runner(factor * IMAGES)
        np.testing.assert_allclose(logits, np.full((1, 2), factor * IMAGES.sum()), rtol=1e-5)
    enqueued = machine.asked.count("IExecutionContext.execute_async_v3")
    launched = machine.asked.count("cudaGraphLaunch")
    assert (enqueued, launched) == ((2, 3) if graph == "on" else (3, 0))
    gpu_ms: list[float] = []
    assert len(burst(runner, IMAGES, 0.0, gpu_ms=gpu_ms)) == len(gpu_ms) == 3
    assert gpu_ms == [0.25] * 3
    del runner
    gc.collect()
    assert machine.memory == {}


def test_an_engine_that_the_manifest_does_not_vouch_for_is_not_loaded(
    install: Install, engine: Path
) -> None:
    machine = install(VERSIONS[-1])
    engine.write_bytes(PLAN[:-1])
    with pytest.raises(InputError, match=r"cmt\.engine is not the file of this bundle"):
        load_engine(engine, SETTINGS, None)
    assert machine.asked == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Runtime.deserialize_cuda_engine", "The engine plan file is not compatible"),
        ("ICudaEngine.create_execution_context", "CUDA out of memory"),
        ("IExecutionContext.execute_async_v3", "an illegal memory access"),
        ("cudaMalloc", "out of memory"),
        ("cudaMallocHost", "out of memory"),
        ("cudaStreamCreateWithFlags", "CUDA driver version is insufficient"),
        ("cudaMemcpyAsync", "unspecified launch failure"),
        ("cudaStreamSynchronize", "unspecified launch failure"),
        ("cudaGraphInstantiate", "out of memory"),
    ],
)
def test_what_fails_on_the_gpu_is_said_in_one_line(
    install: Install, engine: Path, name: str, words: str
) -> None:
    machine = install(VERSIONS[0], fails={name: words})
    with pytest.raises(InputError, match=words) as caught:
        load_engine(engine, SETTINGS, None)(IMAGES)
    assert "\n" not in str(caught.value)
    del caught
    gc.collect()
    assert machine.memory == {}


def test_images_that_do_not_fit_the_engine_are_refused(install: Install, engine: Path) -> None:
    install(VERSIONS[-1])
    runner = load_engine(engine, SETTINGS, None)
    for wrong in (np.tile(IMAGES, (2, 1, 1, 1)), IMAGES.astype(np.float64)):
        with pytest.raises(InputError, match=r"takes float32 \(1, 3, 32, 32\), not"):
            runner(wrong)


@pytest.mark.parametrize(("asked", "batch"), [(None, 2), (1, 1), (4, 4)])
def test_an_engine_of_several_batches_runs_the_one_that_is_asked_for(
    install: Install, engine: Path, asked: int | None, batch: int
) -> None:
    install(VERSIONS[0], profile=[(size, 3, 32, 32) for size in (1, 2, 4)])
    images = np.arange(1, batch + 1, dtype=np.float32)[:, None, None, None] * IMAGES
    (logits,) = load_engine(engine, SETTINGS, asked)(images)
    sums = images.reshape(batch, -1).sum(1)
    np.testing.assert_allclose(logits, np.stack([sums, sums], 1), rtol=1e-5)


def test_a_batch_that_the_engine_does_not_take_is_refused(install: Install, engine: Path) -> None:
    machine = install(VERSIONS[0], profile=[(size, 3, 32, 32) for size in (1, 2, 4)])
    with pytest.raises(InputError, match="does not take 5 images at once"):
        load_engine(engine, SETTINGS, 5)
    gc.collect()
    assert machine.memory == {}


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are timed here, where the GPU is simulated."""

    def measure(
        files: Mapping[str, tuple[str, Path]],
        batch: np.ndarray,
        threads: int,
        seconds: float,
        advance: Callable[[int], None],
        settings: Mapping[str, Any],
    ) -> dict[str, Timing]:
        timings = {}
        for name, (runtime, path) in files.items():
            runner = LOADERS[runtime](path, threads, settings[name], len(batch))
            timings[name] = Timing(1.0, 2.0)
            timings[name].rounds.append(burst(runner, batch, 0.0, 1, timings[name].gpu_ms))
            timings[name].usages.append(Usage(wall=1.0, cpu=1.0))
            timings[name].power_mw = {"VDD_IN": [4000, 5000]}
        return timings

    monkeypatch.setattr(bench, "measure_alternately", measure)


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle in which the INT8 engine alone is to be run."""
    folder = shutil.copytree(bundle.path, tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["artefacts"]:
        if (entry["target"], entry["precision"]) != ("tensorrt", "int8"):
            entry.pop("golden", None)
    write_manifest(folder, manifest)
    return folder


@pytest.fixture
def device(install: Install, copy: Path) -> Callable[..., Machine]:
    """`device(**machine)`: a GPU whose engines compute the bundle's INT8 graph."""
    run = LOADERS[SIMULATED](copy / "model" / "cmt_tiny.int8.onnx", 1)

    def make(version: str = "tensorrt 10.3.0", **what: Any) -> Machine:
        manifest = open_bundle(copy).manifest
        shape = tuple(manifest["input"]["shape"])
        shapes = {"input": shape, "logits": (shape[0], len(manifest["labels"]))}
        return install(version, **{"compute": run, "shapes": shapes, **what})

    return make


def entry_of(folder: Path, target: str) -> dict[str, Any]:
    """The INT8 file of a target, in the manifest."""
    entries = json.loads((folder / "manifest.json").read_text())["artefacts"]
    return next(e for e in entries if (e["target"], e["precision"]) == (target, "int8"))


@needs_engines
def test_engines_for_other_gpus_are_replaced_by_ones_for_this(
    device: Callable[..., Machine], copy: Path
) -> None:
    before = entry_of(copy, "tensorrt")
    machine = device()
    opened = open_bundle(copy)
    reason = not_runnable(before)
    assert reason is not None
    assert "; here are tensorrt_rtx" in reason
    assert "cmt-bench without --verify builds one" in reason
    build_for_here(opened, BuildSettings(), no_bar)
    again = open_bundle(copy)  # which looks at every hash
    entry = entry_of(copy, "tensorrt")
    assert entry["path"] == before["path"]
    assert (copy / entry["path"]).read_bytes() == b"plan"
    assert entry["built_with"] == {"tensorrt": "10.3.0"}
    assert (entry["built_for"], entry["gpu"]) == (["sm87"], "Orin")
    assert entry["driver"] == "CUDA 12.6"
    assert entry["onnx_sha256"] == entry_of(copy, "onnx")["sha256"] == before["onnx_sha256"]
    assert entry["golden"] == before["golden"]
    assert [check.passed for check in verify(again, 1)] == [True, True]

    # It stays until something changes.
    build_for_here(again, BuildSettings(), no_bar)
    assert machine.asked.count("Builder.build_serialized_network") == 1
    newer = device("tensorrt 11.4.0.106")
    build_for_here(again, BuildSettings(), no_bar)
    assert newer.asked.count("Builder.build_serialized_network") == 1


@needs_engines
def test_an_engine_is_built_anew_for_what_it_is_asked_to_be_compatible_with(
    device: Callable[..., Machine], copy: Path
) -> None:
    machine = device(dla_cores=1)
    opened = build_for_here(open_bundle(copy), BuildSettings(), no_bar)
    assert notes(opened) == []
    asked = BuildSettings(compatible=("version",), dla=0)
    for _ in range(2):  # the second time it is what is asked for
        opened = build_for_here(open_bundle(copy), asked, no_bar)
    opened = build_for_here(opened, BuildSettings(), no_bar)  # and is kept by who asks nothing
    assert machine.asked.count("Builder.build_serialized_network") == 2
    entry = entry_of(copy, "tensorrt")
    assert (entry["compatible"], entry["dla"]["core"]) == (["version"], 0)
    (line,) = notes(opened)
    assert line.endswith("DLA core 0 can run 1 of 2 layers; on the GPU: softmax")


@needs_engines
def test_an_engine_of_several_batches_is_built_anew_as_one_and_timed_at_each(
    device: Callable[..., Machine], copy: Path, in_this_process: None
) -> None:
    exact = LOADERS[SIMULATED](copy / "model" / "cmt_tiny.int8.onnx", 1)
    classes = len(open_bundle(copy).manifest["labels"])
    machine = device(
        compute=lambda x: exact(x) if len(x) == 3 else [np.zeros((len(x), classes), np.float32)]
    )
    manifest = json.loads((copy / "manifest.json").read_text())
    for entry in manifest["artefacts"]:
        if (entry["target"], entry["precision"]) == ("tensorrt", "int8"):
            entry["batches"] = [1, 3, 4]
    write_manifest(copy, manifest)
    asked = BuildSettings(compatible=("version",))
    opened = build_for_here(open_bundle(copy), asked, no_bar)
    assert [shape[0] for shape in machine.profile] == [1, 3, 4]
    assert entry_of(copy, "tensorrt")["batches"] == [1, 3, 4]
    entry, _ = bench.measure(opened, Sweep(batches=(1, 4, 5)), "orin", "cmt-bench", no_bar)
    bench.save(opened, entry)  # against the schema
    rows = report_of(open_bundle(copy))["machines"][0]["results"]
    timed = [(row["settings"]["batch"], row["latency_ms"] is not None) for row in rows]
    assert timed == [(1, True), (1, True), (4, True), (4, True), (5, False)]
    assert "the engine takes 1 to 4 images at once" in rows[-1]["reasons"]["latency_ms"]
    assert rows[0]["settings"]["compatible"] == "version"
    assert "compatible: version, CUDA graph on" in (copy / "report.md").read_text()


@needs_engines
def test_settings_of_a_build_are_refused_where_nothing_is_built(
    device: Callable[..., Machine], install: Install, copy: Path
) -> None:
    install("tensorrt 10.3.0", gpu=None)
    assert why_none_is_built(open_bundle(copy)) == "no NVIDIA GPU on this machine"
    device()
    assert why_none_is_built(open_bundle(copy)) is None


@needs_engines
@pytest.mark.parametrize(
    ("what", "kind", "reason"),
    [
        ({"compute": lambda x: [np.zeros(1)]}, GateError, "differs by"),
        ({"compute": lambda x: [np.full(1, np.nan)]}, GateError, "differs by"),
        ({"fails": {"cudaMalloc": "out of memory"}}, InputError, "out of memory"),
        ({"fails": {"OnnxParser.parse": "x"}}, InputError, "TensorRT cannot read"),
        (
            {"fails": {"Builder.build_serialized_network": "GPU memory exhausted"}},
            InputError,
            "short of GPU memory",
        ),
    ],
)
def test_an_engine_that_fails_or_answers_otherwise_does_not_get_into_the_bundle(
    device: Callable[..., Machine],
    copy: Path,
    what: dict[str, Any],
    kind: type[Exception],
    reason: str,
) -> None:
    device(**what)
    files = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(kind, match=reason) as caught:
        build_for_here(open_bundle(copy), BuildSettings(), no_bar)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == files


@needs_engines
def test_a_machine_without_a_gpu_leaves_the_engines_alone(install: Install, copy: Path) -> None:
    install("tensorrt 10.3.0", gpu=None)
    opened = open_bundle(copy)
    assert build_for_here(opened, BuildSettings(), no_bar) is opened


@needs_engines
def test_engines_are_timed_with_a_cuda_graph_and_without(
    device: Callable[..., Machine], copy: Path, in_this_process: None
) -> None:
    device()
    opened = build_for_here(open_bundle(copy), BuildSettings(), no_bar)
    own = opened.manifest["input"]["shape"][0]
    entry, _ = bench.measure(opened, Sweep(batches=(own, 8)), "orin", "cmt-bench", no_bar)
    bench.save(opened, entry)  # against the schema
    graph, plain, other = report_of(open_bundle(copy))["machines"][0]["results"]
    assert graph["settings"]["cuda_graph"] == "on"
    assert plain["settings"]["cuda_graph"] == "off"
    assert graph["measured_by"] == "tensorrt"
    assert graph["latency_ms"]["p50"] > 0
    assert graph["gpu_ms"] == 0.25
    assert other["latency_ms"] is None
    assert other["reasons"]["latency_ms"] == "it takes 3 images at once: export with --batch 8"
    report = (copy / "report.md").read_text()
    assert "CUDA graph on" in report
    assert "0.250" in report
    assert graph["power_mw"] == {"VDD_IN": 4500.0}
    assert "VDD_IN 4,500.0 mW" in report


def test_the_simulated_gpu_is_the_one_of_the_tests(install: Install) -> None:
    """A mistake in the fixture would make the tests above say nothing."""
    from cmt.targets.tensorrt.library import availability

    install("tensorrt 10.3.0")
    found = availability()
    assert (found.library, found.version) == ("tensorrt", "10.3.0")
    assert found.gpu == Gpu("sm87", "Orin", "CUDA 12.6")
