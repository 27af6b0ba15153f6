"""One real export of a small CMT to every target, looked at from all sides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from speedups import assert_told

import cmt
from cmt.bundle.golden import golden_images
from cmt.bundle.manifest import MANIFEST, SEAL, file_entries
from cmt.bundle.reader import open_bundle
from cmt.checkpoints import load_model
from cmt.errors import GateError
from cmt.export import export
from cmt.export.options import ExportOptions
from cmt.export.pipeline import Bundle
from cmt.export.preflight import preflight
from cmt.measure.parity import tolerance_for
from cmt.measure.shards import outputs_of
from cmt.network import CMT
from cmt.report.document import validate
from cmt.targets.base import SIMULATED
from cmt.targets.machine import cuts_int8_sums, describe, usable_cores
from cmt.targets.registry import LOADERS, TARGETS, at_once, not_runnable
from cmt.targets.settings import PRECISION

QUICK: dict[str, Any] = {"tune": False, "bench_seconds": 0.1, "max_drop": 100.0}
AVAILABLE = tuple(name for name, target in TARGETS.items() if target.missing() is None)
needs_tensorrt = pytest.mark.skipif(
    "tensorrt" not in AVAILABLE, reason="tensorrt-rtx has no wheel for this machine"
)


def row(bundle: Bundle, target: str, precision: str) -> dict[str, Any]:
    return next(
        r for r in bundle.report["results"] if (r["target"], r["precision"]) == (target, precision)
    )


def test_every_target_and_precision_has_a_row_and_a_file(bundle: Bundle) -> None:
    rows = {(r["target"], r["precision"]) for r in bundle.report["results"]}
    expected = {("openvino", "fp32"), ("openvino", "fp16"), ("openvino", "int8")}
    expected |= {("onnxruntime", "fp32"), ("onnxruntime", "int8")}
    if "tensorrt" in AVAILABLE:
        expected |= {("tensorrt", "fp16"), ("tensorrt", "int8")}
    assert rows == expected
    assert all((bundle.path / r["artefact"]).is_file() for r in bundle.report["results"])


def test_report_on_disk_is_valid_and_the_same_as_the_returned_one(bundle: Bundle) -> None:
    on_disk = json.loads((bundle.path / "report.json").read_text())
    validate(on_disk)
    assert on_disk == json.loads(json.dumps(bundle.report))


def test_manifest_hashes_are_those_of_the_files(bundle: Bundle) -> None:
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    entries = list(file_entries(manifest))
    present = {
        path.relative_to(bundle.path).as_posix()
        for path in bundle.path.rglob("*")
        if path.is_file()
    }
    assert {entry["path"] for entry in entries} | {MANIFEST, SEAL} == present
    for entry in entries:
        content = (bundle.path / entry["path"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert len(content) == entry["bytes"]


@pytest.mark.parametrize(
    ("runtime", "file", "golden"),
    [
        ("openvino", "openvino/cmt_tiny.fp32.xml", "openvino-fp32"),
        ("openvino", "openvino/cmt_tiny.int8.xml", "openvino-int8"),
        ("onnxruntime", "onnxruntime/cmt_tiny.int8.onnx", "onnxruntime-int8"),
        pytest.param(
            "onnxruntime (simulated)",
            "model/cmt_tiny.fp16.onnx",
            "tensorrt-fp16",
            marks=needs_tensorrt,
        ),
        pytest.param(
            "onnxruntime (simulated)",
            "model/cmt_tiny.int8.onnx",
            "tensorrt-int8",
            marks=needs_tensorrt,
        ),
    ],
)
def test_golden_outputs_come_out_of_the_bundled_files(
    bundle: Bundle, runtime: str, file: str, golden: str
) -> None:
    manifest = json.loads((bundle.path / "manifest.json").read_text())["input"]
    pixels = np.load(bundle.path / "golden" / "images.npy")[:3]
    # In float32 as the files are fed: at the edge between two INT8 levels, the last bit decides.
    mean, std = (np.array(manifest[name], np.float32) for name in ("mean", "std"))
    x = np.ascontiguousarray(((pixels.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2))
    artefacts = json.loads((bundle.path / "manifest.json").read_text())["artefacts"]
    settings = next(a.get("settings") for a in artefacts if a["path"] == file)
    # As it was evaluated: for an open batch, ONNX Runtime has kernels that round otherwise.
    (logits,) = LOADERS[runtime](bundle.path / file, 2, settings, 3)(x)
    expected = np.load(bundle.path / "golden" / f"{golden}-logits.npy")[:3]
    np.testing.assert_allclose(logits, expected, atol=2e-3 * np.abs(expected).max())


def test_a_bundle_of_every_target_opens(bundle: Bundle) -> None:
    targets = {artefact["target"] for artefact in open_bundle(bundle.path).artefacts}
    assert targets == set(AVAILABLE)


def test_fp32_files_answer_as_torch_does_on_every_image(bundle: Bundle) -> None:
    for target in ("openvino", "onnxruntime"):
        accuracy = row(bundle, target, "fp32")["accuracy"]
        assert accuracy["agreement"] == 1
        assert accuracy["drop_pp"] == 0


@needs_tensorrt
def test_engines_are_simulated_and_not_timed_and_say_so(bundle: Bundle) -> None:
    for precision in ("fp16", "int8"):
        engine = row(bundle, "tensorrt", precision)
        assert engine["measured_by"] == "onnxruntime (simulated)"
        assert engine["latency_ms"] is None
        assert engine["reasons"]["latency_ms"]
        assert engine["accuracy"]["images"] == 20


def test_every_arrow_has_a_parity_row_on_real_images(bundle: Bundle) -> None:
    stages = {r["stage"]: r for r in bundle.report["parity"]}
    assert {"onnx", "rewritten", "fitted-qdq", "openvino/int8", "onnxruntime/int8"} <= set(stages)
    assert stages["simplified"]["max_rel"] < 1e-4
    assert stages["rewritten-simplified"]["max_rel"] < 1e-4
    assert all(r["passed"] and r["images"] == 20 for r in stages.values())


def test_an_fp16_file_is_held_to_what_its_arithmetic_allows(bundle: Bundle) -> None:
    stages = {r["stage"]: r for r in bundle.report["parity"]}
    (file,) = (
        entry
        for entry in open_bundle(bundle.path).artefacts
        if (entry["target"], entry["precision"]) == ("openvino", "fp16")
    )
    allowed = tolerance_for("fp16", file["settings"][PRECISION])
    assert stages["openvino/fp16"]["tolerance"] == asdict(allowed)


def test_files_answer_the_same_bits_however_many_images_are_asked_at_once(bundle: Bundle) -> None:
    opened = open_bundle(bundle.path)
    pixels, asked = np.tile(golden_images(opened), (3, 1, 1, 1)), set()
    for artefact in opened.artefacts:
        target = TARGETS.get(artefact["target"])
        if target is None or not_runnable(artefact) is not None:
            continue
        path, settings = opened.file(artefact), artefact["settings"]
        way = at_once(target.name, settings, 3)
        assert way.callers == 3
        alone = target.load(path, 1, settings, 3)
        together = target.load(path, way.threads, way.settings, 3)
        for ours, theirs in zip(
            outputs_of(together, opened.preprocessing, pixels, 3, way.callers),
            outputs_of(alone, opened.preprocessing, pixels, 3),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, theirs)
        asked.add(target.name)
    assert asked == {"openvino", "onnxruntime"}


def test_the_undecodable_image_is_counted_and_warned_about(bundle: Bundle) -> None:
    images = bundle.report["images"]
    assert (images["validation"], images["validation_skipped"]) == (20, 1)
    assert (images["calibration"], images["calibration_skipped"]) == (20, 1)
    assert (images["validation_left_out"], images["calibration_left_out"]) == (0, 0)
    assert any("broken.jpg" in warning for warning in bundle.report["warnings"])


def test_latencies_are_measured_and_ratios_follow_from_them(bundle: Bundle) -> None:
    int8 = row(bundle, "openvino", "int8")
    assert int8["latency_ms"]["iterations"] >= 24
    assert_told(int8, "speedup_vs_baseline")
    assert_told(int8, "speedup_vs_fp32_graph")
    assert int8["peak_rss_mb"] > 20


def test_exported_graph_keeps_layer_norm_and_gelu_as_single_operators(bundle: Bundle) -> None:
    graph = onnx.load(bundle.path / "model" / "cmt_tiny.onnx").graph
    kinds = [node.op_type for node in graph.node]
    # 5 blocks with two norms and 2 GELU each, 4 stage entries with a norm, 3 stem GELUs.
    assert kinds.count("LayerNormalization") == 14
    assert kinds.count("Gelu") == 13
    assert not {"Erf", "ReduceMean"} & set(kinds[:-10])


def test_int8_files_hold_int8_weights(bundle: Bundle) -> None:
    for weights in ("openvino/cmt_tiny.{}.bin", "onnxruntime/cmt_tiny.{}.onnx"):
        fp32, int8 = ((bundle.path / weights.format(p)).stat().st_size for p in ("fp32", "int8"))
        assert int8 < 0.45 * fp32


def test_feature_maps_are_exported_and_checked(
    tiny_in_process: None, tiny_weights: Path, tmp_path: Path
) -> None:
    result = export(
        variant="tiny",
        targets=("openvino",),
        precisions=("fp16",),
        weights=str(tiny_weights),
        img_size=(32, 64),
        output="features",
        out=tmp_path / "features",
        **QUICK,
    )
    graph = onnx.load(result.path / "model" / "cmt_tiny.onnx").graph
    shapes = [[d.dim_value for d in o.type.tensor_type.shape.dim] for o in graph.output]
    assert shapes == [[1, 8, 8, 16], [1, 16, 4, 8], [1, 32, 2, 4], [1, 64, 1, 2]]
    for one in result.report["results"]:
        assert one["accuracy"] is None
        assert "top-1" in one["reasons"]["accuracy"]
    assert result.report["parity"][-1]["stage"] == "openvino/fp16"


@pytest.mark.parametrize("qat", [0, 1])
def test_feature_maps_are_exported_in_int8(
    qat: int, tiny_in_process: None, tiny_weights: Path, photos: Path, tmp_path: Path
) -> None:
    # OpenVINO's own kernels cut off sums on CPUs without VNNI, too many for a random network.
    cut_off = cuts_int8_sums(describe(seed=0))
    targets = ("onnxruntime",) if cut_off else ("openvino", "onnxruntime")
    options: dict[str, Any] = {
        **QUICK,
        "variant": "tiny",
        "targets": targets,
        "precisions": ("int8",),
        "weights": str(tiny_weights),
        "output": "features",
        "calib_data": photos,
        "qat": qat,
        "out": tmp_path / "features",
    }
    lines = preflight(ExportOptions(**options))
    assert "onnxruntime/int8: the parser reads the whole graph" in lines
    result = export(**options)
    assert [r["precision"] for r in result.report["results"]].count("int8") == len(targets)
    assert result.report["calibration"] == []


def test_the_batch_decides_no_range(
    tiny_in_process: None, tiny_weights: Path, photos: Path, tmp_path: Path
) -> None:
    choices = [
        export(
            **QUICK,
            variant="tiny",
            targets=("onnxruntime",),
            precisions=("int8",),
            weights=str(tiny_weights),
            calib_data=photos,
            val_data=photos,
            batch=batch,
            out=tmp_path / str(batch),
        ).report["calibration"]
        for batch in (1, 3)
    ]
    assert choices[0] == choices[1]


@needs_tensorrt
def test_channels_that_are_scaled_for_int8_need_no_fp32_in_its_file(
    tiny_in_process: None,
    tiny_network: Callable[..., CMT],
    save_labelled: Callable[[CMT, Path], None],
    photos: Path,
    tmp_path: Path,
) -> None:
    casts = []
    for factor in (1.0, 20000.0):
        model = tiny_network("official", 2)
        block = model.stages[0].blocks[0]
        with torch.no_grad():
            for parameter in block.norm2.parameters():
                parameter[0] *= factor
            block.ffn.expand.weight[:, 0] /= factor
        path = tmp_path / f"{factor:g}.safetensors"
        save_labelled(model, path)
        result = export(
            **QUICK,
            variant="tiny",
            targets=("tensorrt", "onnxruntime"),
            precisions=("int8",),
            weights=str(path),
            calib_data=photos,
            val_data=photos,
            out=tmp_path / f"{factor:g}",
        )
        graph = onnx.load(result.path / "model" / "cmt_tiny.int8.onnx").graph
        casts.append([node.op_type for node in graph.node].count("Cast"))
    assert casts[0] == casts[1]


def test_a_step_that_changes_the_function_stops_the_run_and_is_named(
    tiny_in_process: None, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def spoil(source: Path, path: Path) -> None:
        model = onnx.load(source)
        weight = next(i for i in model.graph.initializer if i.name == "stem.0.conv.weight")
        values = onnx.numpy_helper.to_array(weight) * np.float32(1.01)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(model, path)

    monkeypatch.setattr("cmt.export.graph_maker.simplify_onnx", spoil)
    with pytest.raises(GateError, match="simplified"):
        export(
            variant="tiny", targets=("onnxruntime",), weights=str(tiny_weights), out=tmp_path / "b"
        )
    assert [path.name for path in tmp_path.iterdir()] == [".b.partial"]


def test_failed_accuracy_gate_leaves_the_bundle_and_says_so(
    tiny_in_process: None,
    resumable: Callable[[Path], Path],
    tiny_weights: Path,
    photos: Path,
    tmp_path: Path,
) -> None:
    result = export(
        variant="tiny",
        targets=("onnxruntime",),
        weights=str(tiny_weights),
        val_data=photos,
        batch=3,
        out=resumable(tmp_path / "bundle"),
        resume=True,
        max_drop=-1.0,
        tune=False,
        bench_seconds=0.1,
    )
    assert result.failures
    assert "onnxruntime/fp32" in result.failures[0]
    assert "max-drop" in (result.path / "report.md").read_text().lower().replace("\\", "")


def test_a_resumed_run_computes_with_its_number_of_threads(
    tiny_in_process: None,
    resumable: Callable[[Path], Path],
    tiny_weights: Path,
    photos: Path,
    tmp_path: Path,
) -> None:
    torch.set_num_threads(usable_cores() + 1)  # torch's answers are there, so nothing loads it
    export(
        variant="tiny",
        targets=("onnxruntime",),
        weights=str(tiny_weights),
        val_data=photos,
        batch=3,
        out=resumable(tmp_path / "bundle"),
        resume=True,
        **QUICK,
    )
    assert torch.get_num_threads() == usable_cores()
    torch.set_num_threads(1)


def test_weights_without_images_leave_the_accuracy_unmeasured(
    tiny_in_process: None, tiny_weights: Path, tmp_path: Path
) -> None:
    weights = str(tiny_weights)
    result = export(
        variant="tiny", targets=("onnxruntime",), weights=weights, out=tmp_path / "b", **QUICK
    )
    assert row(result, "onnxruntime", "fp32")["accuracy"] is None
    assert result.report["gates"]["passed"] is None
    assert "--val-data" in row(result, "onnxruntime", "fp32")["reasons"]["accuracy"]


@needs_tensorrt
def test_a_range_of_batches_is_the_engines_and_their_graphs(
    tiny_in_process: None, tiny_weights: Path, photos: Path, tmp_path: Path
) -> None:
    result = export(
        variant="tiny",
        targets=("tensorrt", "onnxruntime"),
        precisions=("fp16", "int8"),
        weights=str(tiny_weights),
        calib_data=photos,
        val_data=photos,
        batch=2,
        batch_range=(1, 3),
        gpu_archs=("sm86",),
        out=tmp_path / "b",
        **QUICK,
    )
    bundle = open_bundle(result.path)
    assert bundle.manifest["input"]["shape"][0] == 2
    files = {(a["target"], a["precision"]): a for a in bundle.manifest["artefacts"]}
    images = golden_images(bundle)[:3]
    for precision in ("fp16", "int8"):
        engine, graph = files["tensorrt", precision], files["onnx", precision]
        assert engine["batches"] == [1, 2, 3]
        assert engine["onnx_sha256"] == graph["sha256"]
        run = LOADERS[SIMULATED](bundle.file(graph), 1)
        three = run(bundle.preprocessing.feed(images))[0]
        one = run(bundle.preprocessing.feed(images[1:2]))[0]
        np.testing.assert_allclose(three[1:2], one, atol=2e-3 * np.abs(three).max())


def test_public_names_are_where_the_documentation_says() -> None:
    assert cmt.load_model is load_model
