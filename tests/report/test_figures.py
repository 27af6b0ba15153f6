"""Every figure of the pages is the one in the JSON file beside them, rounded as it says there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_report import (
    make_accuracy,
    make_calibration,
    make_fallback,
    make_report,
    make_row,
    make_sensitivity,
)
from page_figures import (
    Piece,
    comparison_problems,
    html_pieces,
    markdown_pieces,
    report_problems,
    spoiled,
)

from cmt.report.comparison import merge, read_source
from cmt.report.comparison_pages import write_comparison
from cmt.report.document import write_report

Report = dict[str, Any]
READERS = {".html": html_pieces, ".md": markdown_pieces}


def varied_report(seed: int) -> Report:
    """A report with everything that a page can show, no two figures of which are alike."""
    rng = np.random.default_rng(seed)

    def varied(value: Any, key: str = "") -> Any:
        if isinstance(value, dict) and "ci95" in value:  # which holds its ratio
            factor = rng.uniform(0.87, 0.99)
            bounds = [float(bound * factor) for bound in value["ci95"]]
            return {**value, "ratio": float(value["ratio"] * factor), "ci95": bounds}
        if isinstance(value, dict):
            return {name: varied(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [varied(item, key) for item in value]
        if isinstance(value, float):
            return float(value * rng.uniform(0.87, 0.99))
        if isinstance(value, int) and not isinstance(value, bool) and value > 99:
            return int(value * rng.uniform(0.87, 0.99))
        return value

    report = make_report()
    for row in (report["baseline"], *report["results"]):
        row.update({k: varied(v) for k, v in row.items() if k not in ("settings", "reasons")})
    int8 = report["results"][1]
    entry = int8["changes"]["classes"][0]
    int8["changes"]["classes"] = [
        varied(entry) | {"name": name} for name in ("tench", "chain saw", "church", "golf ball")
    ]
    gain = make_row("openvino", "fp16", 7.77, 1.9)
    gain["accuracy"].update(drop_pp=-0.55, drop_ci95=[-0.83, -0.27], agreement=0.99999)
    gain["accuracy"]["mcnemar_p"] = 3e-6
    report["results"].insert(1, varied(gain) | {"reasons": {}, "settings": gain["settings"]})
    for row in report["results"]:
        if "changes" in row:
            row["changes"]["classes"] = [varied(entry) for entry in int8["changes"]["classes"]]
    report["images"].update(validation_skipped=57, calibration_skipped=23)
    report["environment"].update(seed=4321, cores=36)
    report["parity"] = varied(report["parity"])
    for row in report["parity"]:
        row["top1_agreement"] = 1.0
    report["sensitivity"] = [
        varied(make_sensitivity(f"ffn expand, stage {i}", 30.0 + i)) for i in range(1, 23)
    ]
    for row in report["sensitivity"]:
        row["images"] = 16
    report["calibration"] = [varied(make_calibration()) | {"images": 16}]
    report["fallbacks"] = [varied(make_fallback(met=False))]
    del report["sensitivity_reason"]
    timed = {"threads": 4, "batch": 8, "NUM_STREAMS": 2}
    rows = [varied(make_row("openvino", p, 30.0, 1.0)) for p in ("fp32", "int8")]
    for row in rows:
        row.update(settings=timed, accuracy=None, speedup_vs_baseline=None)
        row["reasons"] = {"accuracy": "measured elsewhere", "speedup_vs_baseline": "no torch"}
    for row, low, ratio, high in ((rows[0], 0.51, 0.57, 0.68), (rows[1], 0.24, 0.31, 0.39)):
        row["speedup_vs_fp32_graph"] = {"ratio": ratio, "ci95": [low, high], "rounds": 9}
    rows[0]["accuracy"] = varied(make_accuracy(88.88, 0.75, [0.33, 0.95]))
    rows[0]["beside_torch"] = {"images": 1877, "agreement": 0.9911, "max_rel": 0.0123}
    rows[0]["unknown_images"] = {"images": 7654, "top1": 91.23, "agreement": 0.9876}
    del rows[0]["reasons"]["accuracy"]
    rows[1]["layers"] = {"int8_in_file": 9871, "run": {"int8": 1532, "f16": 8339}}
    rows[1]["settings"] = {**timed, "INFERENCE_PRECISION_HINT": "f16"}
    rows[1]["otherwise"] = {
        "INFERENCE_PRECISION_HINT": {"asked": "bf16", "in_force": "f16"},
        "INFERENCE_NUM_THREADS": {"asked": 640, "in_force": 317},
    }
    report["machines"] = [
        {
            "machine": "edge-box",
            "measured": "2026-11-23T08:00:00+00:00",
            "command": "cmt-bench bundle --threads 4",
            "environment": {**report["environment"], "cpu": "Cortex-A78AE", "gpu": "Orin"},
            "results": rows,
        }
    ]
    return report


@pytest.fixture(scope="module", params=["made up", "measured"])
def report_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three files of a report."""
    if request.param == "measured":
        return request.getfixturevalue("bundle").path
    folder = tmp_path_factory.mktemp("report")
    write_report(varied_report(0), folder)
    return folder


@pytest.fixture(scope="module")
def comparison_folder(report_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three files of its comparison with another machine's."""
    # A seed by which no figure comes out as another one with its last digit changed.
    folder, other = tmp_path_factory.mktemp("comparison"), varied_report(3)
    other["environment"] = {**other["environment"], "cpu": "Ryzen 9 9950X"}
    other["machines"][0]["machine"] = "other-box"
    write_report(other, folder)
    sources = [read_source(str(path)) for path in (report_folder, folder)]
    write_comparison(merge(sources, mix_images=True), folder)
    return folder


@pytest.fixture(params=[f"{n}{s}" for n in ("report", "comparison") for s in READERS])
def page(
    request: pytest.FixtureRequest, report_folder: Path, comparison_folder: Path
) -> tuple[list[Piece], Callable[[list[Piece]], list[str]]]:
    """A page's texts, and what finds those that its JSON file does not bear out."""
    name, _, suffix = request.param.partition(".")
    folder = report_folder if name == "report" else comparison_folder
    source = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    pieces = READERS[f".{suffix}"]((folder / request.param).read_text(encoding="utf-8"))
    check = report_problems if name == "report" else comparison_problems
    return pieces, lambda some: check(some, source)


def test_every_figure_is_the_json_files(page: Any) -> None:
    pieces, problems = page
    assert problems(pieces) == []


# Measured figures may be alike by chance, those made up are not.
@pytest.mark.parametrize("report_folder", ["made up"], indirect=True)
def test_a_figure_that_is_wrong_by_its_last_digit_is_found(page: Any) -> None:
    pieces, problems = page
    changed = list(spoiled(pieces))
    assert len(changed) > 100
    unnoticed = [(pieces[i].text, piece.text) for i, piece in changed if not problems([piece])]
    assert unnoticed == []
