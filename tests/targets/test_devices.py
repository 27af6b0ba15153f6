"""Devices: named where there is none, and refused by name where they answer otherwise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cmt.bundle.golden import run_artefact
from cmt.bundle.reader import open_bundle
from cmt.bundle.writer import describe_file, write_manifest
from cmt.commands.cmt_bench import bench_cli
from cmt.commands.cmt_export import export_cli
from cmt.errors import GateError, InputError
from cmt.targets import onnxruntime, openvino, registry
from cmt.targets.base import Batch, Runner
from cmt.targets.onnxruntime import cpu_session
from cmt.targets.openvino import AUTO, NOT_TAKEN, IrRunner, build_ir, load_openvino
from cmt.targets.settings import DEVICE, PRECISION

WRONG = "NPU"
Graph = Callable[[str], Path]


@pytest.fixture
def wrong_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO has a device here that takes the least probable class for the most probable."""
    row = registry.TARGETS["openvino"]

    def load(path: Path, threads: int, settings: Any = None, batch: int | None = None) -> Runner:
        if (settings or {}).get(DEVICE) != WRONG:
            return row.load(path, threads, settings, batch)
        run = row.load(path, threads, {**settings, DEVICE: "CPU"}, batch)

        def turned(images: Batch) -> list[np.ndarray]:
            return [-array for array in run(images)]

        return turned

    here = replace(row, devices=lambda: [*row.devices(), WRONG], load=load)
    monkeypatch.setitem(registry.TARGETS, "openvino", here)
    monkeypatch.setitem(registry.LOADERS, "openvino", load)
    asked = openvino._capabilities
    monkeypatch.setattr(openvino, "_capabilities", lambda d: asked("CPU" if d == WRONG else d))


@pytest.fixture
def copy(openvino_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(openvino_bundle, tmp_path / "copy")


def bench(*arguments: object) -> None:
    bench_cli.main([*map(str, arguments)], standalone_mode=False)


@pytest.mark.usefixtures("wrong_device")
@pytest.mark.parametrize("more", [("--verify",), ("--seconds", "0.1")])
def test_a_device_that_answers_otherwise_is_refused_by_name(
    copy: Path, more: tuple[str, ...]
) -> None:
    before = (copy / "report.json").read_bytes()
    with pytest.raises(GateError, match=WRONG) as caught:
        bench(copy, "--device", WRONG, *more)
    assert "openvino/cmt_tiny.int8.xml" in str(caught.value)
    assert (copy / "report.json").read_bytes() == before


@pytest.mark.usefixtures("wrong_device")
def test_answers_that_are_not_the_fp32_files_are_refused_though_the_bundle_has_them(
    copy: Path,
) -> None:
    """As where a bundle was made on a device that was wrong already."""
    manifest = json.loads((copy / "manifest.json").read_text())
    (int8,) = [a for a in manifest["artefacts"] if a["path"].endswith("int8.xml")]
    entry = int8["golden"]["outputs"][0]
    np.save(copy / entry["path"], -np.load(copy / entry["path"]))
    entry |= describe_file(copy, copy / entry["path"])
    write_manifest(copy, manifest)
    with pytest.raises(GateError, match=r"int8.xml has a cosine of .* with the FP32 file's"):
        bench(copy, "--device", WRONG)


@pytest.mark.usefixtures("wrong_device")
def test_an_export_on_a_device_that_answers_otherwise_is_refused(
    small: str, tmp_path: Path, resumable: Callable[[Path], Path]
) -> None:
    out = resumable(tmp_path / "out")
    words = [*small.split(), "--target", "openvino", "--device", WRONG, "--out", str(out)]
    with pytest.raises(GateError, match=f"parity failed at 'openvino/fp32 on {WRONG}'"):
        export_cli.main(words, standalone_mode=False)
    assert not out.exists()


@pytest.mark.parametrize("more", [("--verify",), ()])
def test_a_device_that_is_not_there_is_told_from_those_that_are(
    openvino_bundle: Path, more: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as caught:
        bench(openvino_bundle, "--device", "TPU", *more)
    assert str(caught.value) == "openvino has no device TPU here: " + ", ".join(openvino.devices())


def test_an_export_names_the_target_that_lacks_the_device(small: str, tmp_path: Path) -> None:
    words = [*small.split(), "--target", "openvino", "--target", "onnxruntime"]
    with pytest.raises(InputError, match="onnxruntime has no device AUTO here: CPU"):
        export_cli.main(
            [*words, "--device", "AUTO", "--out", str(tmp_path / "out")],
            "cmt-export",
            standalone_mode=False,
        )
    assert not (tmp_path / "out").exists()


def test_openvinos_own_choice_is_measured_and_told(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """OpenVINO's AUTO, which takes this machine's CPU where there is nothing else."""
    bench(copy, "--device", AUTO, "--seconds", "0.1", "--threads", "1", "--json")
    rows = json.loads(capsys.readouterr().out)["results"]
    for row in rows:
        assert row["otherwise"][DEVICE]["asked"] == AUTO
        assert row["settings"][DEVICE] == row["otherwise"][DEVICE]["in_force"]
        assert row["latency_ms"]["p50"] > 0
    taken = rows[0]["settings"][DEVICE]
    assert f"openvino fp32 on {taken}" in (copy / "report.md").read_text()


def test_every_device_gives_the_cpus_answers(openvino_bundle: Path) -> None:
    bundle = open_bundle(openvino_bundle)
    images = bundle.preprocessing.feed(np.zeros((3, 64, 64, 3), np.uint8))
    for artefact in bundle.artefacts:
        (expected,) = run_artefact(bundle, artefact, images, 1)
        for device in openvino.devices():
            (found,) = run_artefact(bundle, artefact, images, 1, device)
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_settings_that_a_device_does_not_know_are_left_out_and_told(
    float_graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an NPU that takes no hint on its arithmetic; OpenVINO would refuse the file."""
    build_ir(float_graph("official"), "fp32", tmp_path / "file.xml")
    runner = load_openvino(tmp_path / "file.xml", 1)
    known = {"SUPPORTED_PROPERTIES": {"PERFORMANCE_HINT": "RW", "NUM_STREAMS": "RO"}}
    core = SimpleNamespace(get_property=lambda device, name: known[name])
    monkeypatch.setattr(openvino, "openvino_core", lambda: core)
    asked = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    assert openvino._properties("NPU", asked) == {"PERFORMANCE_HINT": "LATENCY"}
    told = IrRunner(runner._model, runner._compiled, {**asked, PRECISION: "f32"}, "NPU").compiled()
    assert told["settings"][PRECISION] == NOT_TAKEN
    assert told["settings"]["NUM_STREAMS"] == NOT_TAKEN


def test_a_device_without_an_arithmetic_computes_in_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openvino, "_capabilities", lambda device: ["FP16"])
    artefact = {"target": "openvino", "settings": {PRECISION: "f32"}}
    assert "no float32" in str(registry.computes_otherwise(artefact, "NPU"))
    assert registry.computes_otherwise(artefact) is None


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_cannot_be_loaded_is_no_silent_cpu(float_graph: Graph) -> None:
    with pytest.raises(RuntimeError, match="cannot load its CUDAExecutionProvider"):
        cpu_session(float_graph("official"), 1, device="CUDA")


def test_providers_are_the_devices_of_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime as runtime

    names = ["CUDAExecutionProvider", "AzureExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(runtime, "get_available_providers", lambda: names)
    assert onnxruntime.devices() == ["CPU", "CUDA"]
