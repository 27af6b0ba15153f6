"""The bundle's bill of materials keeps the official schema and lists what was installed."""

from __future__ import annotations

import json
from importlib.metadata import version

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from cmt.bundle.reader import open_bundle
from cmt.bundle.sbom import build_sbom
from cmt.export.pipeline import Bundle


def test_it_keeps_the_official_schema() -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    for weights in (None, "0" * 64):
        assert validator.validate_str(json.dumps(build_sbom(weights))) is None
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
