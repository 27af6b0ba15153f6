"""The bundle's bill of materials keeps the official schema and lists what was installed."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from example_report import make_report

from cmt.bundle.reader import open_bundle
from cmt.bundle.sbom import build_sbom
from cmt.export.pipeline import Bundle
from cmt.report.model_card import model_card


def whole_report() -> dict[str, Any]:
    """Made-up figures, with what every report of today has."""
    report = make_report()
    for row in (report["baseline"], *report["results"]):
        row.setdefault("simulated", False)
    return report


def test_it_keeps_the_official_schema() -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    for weights in (None, "0" * 64):
        assert validator.validate_str(json.dumps(build_sbom(weights))) is None
        card = model_card(whole_report(), ["ant", "bee"])
        assert validator.validate_str(json.dumps(build_sbom(weights, card))) is None
    broken = {**build_sbom(None), "components": [{"name": "x"}]}
    assert validator.validate_str(json.dumps(broken)) is not None


def test_it_lists_what_the_export_needs_and_nothing_of_the_developers() -> None:
    components = {c["name"]: c for c in build_sbom(None)["components"]}
    for name in ("torch", "onnx", "openvino", "numpy", "attrs", "safetensors", "matplotlib"):
        assert components[name]["version"] == version(name)
        assert components[name]["purl"].startswith(f"pkg:pypi/{name}@")
    assert not {"pytest", "hypothesis", "cmt-export"} & components.keys()


def test_every_dependency_is_listed_once() -> None:
    sbom = build_sbom("0" * 64)
    references = [c["bom-ref"] for c in (sbom["metadata"]["component"], *sbom["components"])]
    assert len(references) == len(set(references))
    for entry in sbom["dependencies"]:
        assert {entry["ref"], *entry["dependsOn"]} <= set(references)


def test_it_is_in_the_bundle_with_the_hash_of_the_weights(bundle: Bundle) -> None:
    opened = open_bundle(bundle.path)
    sbom = json.loads(opened.file(opened.manifest["sbom"]).read_text())
    (weights,) = [c for c in sbom["components"] if c["name"] == "weights"]
    assert weights["hashes"][0]["content"] == bundle.report["weights"]["sha256"]


def test_the_card_has_the_reports_figures_with_their_intervals(bundle: Bundle) -> None:
    opened = open_bundle(bundle.path)
    sbom = json.loads(opened.file(opened.manifest["sbom"]).read_text())
    (weights,) = [c for c in sbom["components"] if c["name"] == "weights"]
    card = weights["modelCard"]
    metrics = card["quantitativeAnalysis"]["performanceMetrics"]
    for row in bundle.report["results"]:
        name = f"{row['target']} {row['precision']}"
        own = {m["type"]: m for m in metrics if m["slice"].startswith((f"{name},", f"{name} "))}
        assert float(own["top-1 accuracy, percent"]["value"]) == pytest.approx(
            row["accuracy"]["top1"], abs=1e-4
        )
        drop = own["top-1 drop against the network in torch, points"]
        interval = [float(drop["confidenceInterval"][f"{end}Bound"]) for end in ("lower", "upper")]
        assert interval == pytest.approx(row["accuracy"]["drop_ci95"], abs=1e-4)
    data = {d["name"]: d for d in card["modelParameters"]["datasets"]}
    images = bundle.report["images"]
    assert data["validation"]["contents"]["properties"][0]["value"] == images["validation_sha256"]
    assert set(bundle.report["warnings"]) <= {*card["considerations"]["technicalLimitations"]}


def test_a_card_without_accuracy_says_why_and_has_no_figure() -> None:
    report = whole_report()
    for row in (report["baseline"], *report["results"]):
        row |= {"accuracy": None, "reasons": {"accuracy": "no labels"}}
    card = model_card(report, [])
    assert card["quantitativeAnalysis"]["performanceMetrics"] == []
    limits = card["considerations"]["technicalLimitations"]
    assert sum(limit.endswith("accuracy not measured: no labels") for limit in limits) >= 2


def test_top_1_has_the_score_interval_of_its_images() -> None:
    report = whole_report()
    report["baseline"]["accuracy"] |= {"top1": 90.0, "images": 100}
    (first, *_) = model_card(report, [])["quantitativeAnalysis"]["performanceMetrics"]
    # 90 of 100: 82.56 to 94.48, as statsmodels' proportion_confint(method="wilson") has it.
    assert first["confidenceInterval"] == {"lowerBound": "82.5634", "upperBound": "94.4771"}
