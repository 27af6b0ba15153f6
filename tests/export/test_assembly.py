"""The golden answers of files that are run in BF16: once in that, once as other CPUs compute."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cmt.bundle.golden import golden_images, run_artefact
from cmt.bundle.reader import open_bundle
from cmt.export.assembly import float32_answers, write_golden_outputs
from cmt.export.graphs import Candidate
from cmt.targets.openvino import TARGET


def results_of(stored: Path, folder: Path, hint: str) -> Any:
    """What a run has of the stored bundle's file, were it run with this hint."""
    shutil.copytree(stored / "openvino", folder)
    settings = {"INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": 1}
    (folder / "built.json").write_text(json.dumps({"settings": settings}))
    bundle = open_bundle(stored)
    pixels, feed = golden_images(bundle), bundle.preprocessing.feed

    class Images:
        def __len__(self) -> int:
            return len(pixels)

        def batches(self, size: int, places: np.ndarray) -> Any:
            return (feed(pixels[places[i : i + size]]) for i in range(0, len(places), size))

    context = SimpleNamespace(
        threads=1, as_fed=lambda images: images, settings=lambda settings: settings
    )
    options = SimpleNamespace(batch=1)
    return SimpleNamespace(
        built={"openvino/int8": folder}, context=context, options=options, validation=Images()
    )


def test_a_file_that_is_run_in_bf16_has_answers_in_float32_beside_it(
    stored: Path, tmp_path: Path
) -> None:
    candidate = Candidate(TARGET, "int8")
    assert float32_answers(results_of(stored, tmp_path / "f32", "f32"), candidate) is None
    answers = float32_answers(results_of(stored, tmp_path / "bf16", "bf16"), candidate)
    assert answers is not None
    bundle = open_bundle(stored)
    (entry,) = [a for a in bundle.artefacts if a["target"] == "openvino"]
    entry["settings"]["INFERENCE_PRECISION_HINT"] = "f32"
    expected = run_artefact(
        bundle, entry, bundle.preprocessing.feed(golden_images(bundle)), threads=1
    )
    np.testing.assert_array_equal(answers[0], expected[0])
    golden = write_golden_outputs(stored, candidate, ["logits"], [answers[0] + 1], answers)
    kinds = [golden["outputs"][0]["path"], golden["outputs_f32"][0]["path"]]
    assert kinds == ["golden/openvino-int8-logits.npy", "golden/openvino-int8-logits.f32.npy"]
    np.testing.assert_array_equal(np.load(stored / kinds[1]), answers[0])
    assert "outputs_f32" not in write_golden_outputs(stored, candidate, ["logits"], answers)
