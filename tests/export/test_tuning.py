"""Fine-tuning within an export: held-out images decide whether it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export import export
from quantize import finetune


@pytest.mark.parametrize(("rate", "used"), [(1e-6, 1), (1.0, 0)])
def test_fine_tuning_that_does_harm_is_not_used(
    rate: float,
    used: int,
    tiny_in_process: None,
    tiny_weights: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(finetune, "LEARNING_RATE", rate)
    options: dict[str, Any] = {
        "variant": "tiny",
        "targets": ("onnxruntime",),
        "precisions": ("int8",),
        "weights": str(tiny_weights),
        "calib_data": photos,
        "val_data": photos,
        "bench_seconds": 0.05,
        "threads": 1,
        "max_drop": 100.0,
    }
    report = export(**options, out=tmp_path / "tuned", qat=1).report
    scheme = report["fine_tuning"]["schemes"]["explicit"]
    assert scheme["chosen"] == used
    assert (scheme["held_out"][1] < scheme["held_out"][0]) == bool(used)
    export(**options, out=tmp_path / "plain")
    manifests = [
        json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("tuned", "plain")
    ]
    tuned, plain = (
        {a["precision"]: a["sha256"] for a in manifest["artefacts"] if "golden" in a}
        for manifest in manifests
    )
    assert tuned["fp32"] == plain["fp32"]
    assert (tuned["int8"] == plain["int8"]) == (not used)
