"""The accuracy benchmark: ours stays as good as reviewed, and a run goes on where it stopped."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import accuracy, quantisers
from benchmarks.accuracy import (
    Contender,
    ImageSet,
    behind_ours,
    judge,
    make_table,
    regressions,
    reviewed,
)
from benchmarks.result_tables import to_markdown
from cmt import load_model, rewrite_for_inference
from cmt.calib_data.prepared import open_prepared, prepare
from cmt.calib_data.preprocessing import Preprocessing
from cmt.calib_data.sources import bundled
from cmt.checkpoints import named_weights
from cmt.errors import InputError
from cmt.export.options import ExportOptions
from cmt.measure.progress import ProgressBars
from cmt.quantize.activation import fit_activations
from cmt.quantize.equalise import equalise
from cmt.quantize.fine_tuning import observe_inputs, rounded
from cmt.quantize.recipe import EXPLICIT, OPENVINO, RECIPES
from cmt.targets.base import SIMULATED
from cmt.targets.onnxruntime import load_onnxruntime
from cmt.targets.openvino import load_openvino

Row = dict[str, Any]


def test_our_int8_is_as_good_as_reviewed_on_a_few_images(tmp_path: Path) -> None:
    """Rounded in torch as the files round; whole files on whole sets take hours, see `--check`."""
    model = load_model("ti", named_weights("demo", "ti"))
    preprocessing = Preprocessing.for_model(model.img_size, model.metadata)
    images = {}
    for split, count in (("calibration", 32), ("validation", 48)):
        (tmp_path / split).mkdir()
        prepare(bundled(split), preprocessing, tmp_path / split, count=count, seed=0)
        images[split] = open_prepared(tmp_path / split, preprocessing)
    fitted = rewrite_for_inference(model)
    few = images["calibration"].batches(1, np.arange(0, 32, 4))
    fit_activations(fitted, (torch.from_numpy(batch) for batch in few))
    scaled = copy.deepcopy(model)
    equalise(scaled, map(torch.from_numpy, images["calibration"].batches(16)))

    def answers(network: torch.nn.Module) -> np.ndarray:
        with torch.inference_mode():
            batches = images["validation"].batches(16)
            return np.concatenate([network(torch.from_numpy(batch)) for batch in batches])

    rows = []
    for scheme, network in ((EXPLICIT, scaled), (OPENVINO, fitted)):
        reference = answers(model)
        histograms = observe_inputs(network, RECIPES[scheme], images["calibration"])
        with rounded(network, RECIPES[scheme], histograms):
            figures = judge(answers(network), reference, images["validation"].labels)
        rows.append({"name": scheme, **figures})
    assert regressions({"sets": {"quick": {"rows": rows}}}, reviewed()) == []
    assert {row["name"] for row in rows} == reviewed()["quick"].keys()


def row(name: str, drop: float | None, error: float) -> Row:
    measured = None
    if drop is not None:
        measured = {
            "top1": 80.0,
            "drop_pp": drop,
            "drop_ci95": [-0.1, 0.9],
            "agreement": 0.98,
            "mcnemar_p": 0.04,
        }
    reason = {} if measured else {"reason": "not finished in 60 s"}
    return {
        "name": name,
        "runtime": "openvino",
        "accuracy": measured,
        "logit_error": error,
    } | reason


@pytest.fixture
def results() -> Row:
    packages = dict.fromkeys(("openvino", "nncf", "onnxruntime", "torch"), "1.0")
    rows = [row("ours", 0.2, 0.02), row("slow peer", None, 0.0)]
    return {
        "sets": {
            "photos": {
                "variant": "ti",
                "validation": 3925,
                "calibration": 512,
                "threads": 2,
                "environment": {"cpu": "a processor", "cpu_flags": ["avx2"], "packages": packages},
                "measured": "2026-01-31T00:00:00+00:00",
                "rows": rows,
            }
        },
    }


@pytest.mark.parametrize(
    ("figures", "lines"),
    [
        ({"drop_pp": [0.1, 0.15], "logit_error": [0.018, 0.004]}, []),
        ({"drop_pp": [0.0, 0.15]}, ["photos: ours has drop_pp 0.2, reviewed 0"]),
        ({"logit_error": [0.01, 0.005]}, ["photos: ours has logit_error 0.02, reviewed 0.01"]),
    ],
)
def test_a_figure_beyond_its_tolerance_is_a_regression(
    results: Row, figures: Row, lines: list[str]
) -> None:
    assert regressions(results, {"photos": {"ours": figures}, "not measured": {}}) == lines


def test_a_reviewed_file_that_is_gone_is_a_regression(results: Row) -> None:
    reference = {"photos": {"gone": {"drop_pp": [0, 9]}, "slow peer": {"drop_pp": [0, 9]}}}
    gone = ["photos: gone is missing", "photos: slow peer is missing"]
    assert regressions(results, reference) == gone


def test_the_published_tables_are_those_of_the_results_and_as_good_as_reviewed() -> None:
    root = Path(__file__).parents[2]
    published = json.loads((root / "docs" / "data" / "accuracy.json").read_text())
    assert published["sets"].keys() == reviewed().keys() - {"quick"}
    assert regressions(published, reviewed()) == []
    page = (root / "docs" / "notebook" / "accuracy.md").read_text()
    for name in published["sets"]:
        assert to_markdown(make_table(name, published)) in page


def test_check_fails_with_what_got_worse(
    results: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    for worst, status in ((0.3, 0), (0.1, 1)):
        reference = {"photos": {"ours": {"drop_pp": [worst, 0]}}}
        monkeypatch.setattr(accuracy, "reviewed", lambda reference=reference: reference)
        answer = CliRunner().invoke(accuracy.main, ["--check", str(file)])
        assert answer.exit_code == status
        assert ("ours has drop_pp 0.2" in answer.output) == bool(status)


def test_table_says_what_has_no_file_and_how_far_a_peer_is_behind(results: Row) -> None:
    behind = {"drop_pp": 0.4, "drop_ci95": [0.1, 0.7]}
    results["sets"]["photos"]["rows"].append(row("peer", 0.6, 0.05) | {"behind_ours": behind})
    text = to_markdown(make_table("photos", results))
    assert "| slow peer | - | - |" in text
    assert "slow peer: not finished in 60 s." in text
    cells = "80.00 | +0.20 [-0.10, +0.90] | 0.0400 | - | 98.00 % | 2.00 % | - | -"
    assert f"| ours | {cells} |" in text
    cells = "80.00 | +0.60 [-0.10, +0.90] | 0.0400 | +0.40 [+0.10, +0.70] | 98.00 % | 5.00 %"
    assert f"| peer | {cells} | - | - |" in text


def test_a_peer_is_compared_with_our_file_for_the_same_kind_of_machine() -> None:
    labels = np.array([0, 1, 0, 1])
    right = np.eye(2, dtype=np.float32)[labels]
    wrong_once = right.copy()
    wrong_once[3] = [1, 0]
    ours = {"ours, OpenVINO INT8": right, "ours, TensorRT INT8": wrong_once}
    for runtime, behind in (("openvino", 25.0), ("onnxruntime", 25.0), (SIMULATED, 0.0)):
        peer = Contender("peer", runtime, "files/peer", Path("int8.onnx"))
        beside = behind_ours(peer, wrong_once, ours, labels)
        assert beside is not None
        assert beside["drop_pp"] == behind
        assert behind_ours(peer, wrong_once, {}, labels) is None
        own = replace(peer, stage="ours")
        assert behind_ours(own, wrong_once, ours, labels) is None


@pytest.fixture
def images(photos: Path, tiny_weights: Path, tmp_path: Path) -> ImageSet:
    """The tiny network on pictures of two classes."""
    options = ExportOptions(
        "tiny", ("openvino",), weights=tiny_weights, calib_data=photos, val_data=photos
    )
    return ImageSet(replace(options, calib_count=8), tmp_path, ProgressBars(False))


@pytest.mark.usefixtures("tiny")
def test_peers_quantise_the_same_graph_and_what_they_cannot_do_is_said(
    images: ImageSet, tmp_path: Path
) -> None:
    batches = list(images.calibration.batches(1))
    held_out = images._held_out()
    assert len(held_out) == 8
    graph, batch = images._graph, batches[0]
    float_answer = load_openvino(graph, 1)(batch)[0]
    nncf, ort = tmp_path / "nncf.xml", tmp_path / "ort.onnx"
    quantisers.nncf_int8(graph, batches, nncf, transformer=True)
    quantisers.onnxruntime_int8(graph, batches, ort)
    for answer in (load_openvino(nncf, 1)(batch)[0], load_onnxruntime(ort, 1)(batch)[0]):
        assert 0 < np.abs(answer - float_answer).max() < np.abs(float_answer).max()
    too_short = partial(quantisers.nncf_controlled_int8, graph, batches, held_out, nncf)
    contender = images._peer("slow", "openvino", lambda _: too_short(max_drop=0, seconds=0), {})
    assert contender.reason == "not finished in 0 s"
    assert not contender.timed
    made: list[Path] = []
    for _ in range(2):  # the second finds it finished
        images._peer("peer", "openvino", made.append, {})
    assert len(made) == 1


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    options = ExportOptions("ti", ("openvino",), weights="random")
    with pytest.raises(InputError, match="no accuracy: the weights are random"):
        ImageSet(options, tmp_path, ProgressBars(False))
