"""What a manifest may say: every value of its type and in its range, names of one visible line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cmt.bundle import reader
from cmt.bundle.manifest import MANIFEST, parse_manifest
from cmt.bundle.reader import open_bundle
from cmt.bundle.writer import write_manifest
from cmt.errors import InputError

Manifest = dict[str, Any]


def parse(manifest: Manifest) -> Manifest:
    return parse_manifest(json.dumps(manifest).encode())


def engine(manifest: Manifest, **fields: Any) -> Manifest:
    """The manifest with its last file turned into an engine."""
    entry = manifest["artefacts"][-1]
    entry |= {"target": "tensorrt", "built_with": {"tensorrt": "10.3.0"}, "built_for": ["sm87"]}
    entry |= fields
    return manifest


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value within."""
    yield path
    items = enumerate(value) if isinstance(value, list) else ()
    for key, item in value.items() if isinstance(value, dict) else items:
        yield from places(item, (*path, key))


def put(manifest: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        manifest = manifest[key]
    manifest[place[-1]] = value


def refused(manifest: Manifest) -> str:
    """What is said of a manifest; empty of a good one."""
    try:
        parse(manifest)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("value", [5, "x", None, [], {}, [[]], -1, 1e300, True, "a\x1bb", 2**63])
def test_no_value_of_another_kind_is_more_than_refused(manifest: Manifest, value: Any) -> None:
    for place in list(places(manifest))[1:]:
        changed = copy.deepcopy(manifest)
        put(changed, place, value)
        assert "\n" not in refused(changed)


@pytest.mark.parametrize(
    "entry",
    [
        {"path": 5, "sha256": "0" * 64, "bytes": 1},
        {"path": "a", "sha256": 5, "bytes": 1},
        {"path": "a", "sha256": "0" * 64, "bytes": "1"},
        {"path": "a", "sha256": "0" * 64, "bytes": True},
        {"path": "a", "sha256": "0" * 64},
        {"path": None, "sha256": None},
        {"path": ["a"], "sha256": {}},
        {"path": "a\nb", "sha256": "0" * 64, "bytes": 1},
        {"path": "report.md", "sha256": "0" * 64, "bytes": 1},
    ],
)
def test_what_is_named_like_a_file_is_one(manifest: Manifest, entry: Any) -> None:
    for where in (entry, {"deeper": [entry]}):
        manifest["environment"] = {"x": where}
        with pytest.raises(InputError, match=r"no file of a bundle|is there twice"):
            parse(manifest)


@pytest.mark.parametrize("value", [{"path": 5}, {"sha256": 5}, {"path": {"path": []}}])
def test_the_environment_may_say_anything_else(manifest: Manifest, value: Any) -> None:
    manifest["environment"] = value
    assert parse(manifest)["environment"] == value


@pytest.mark.parametrize(
    "built_with",
    [
        {"venv.__main__": "1"},
        {"os": "1"},
        {"tensorrt.plugin": "1"},
        {"tensorrt": "10", "tensorrt_rtx": "1"},
        {"tensorrt": "10", "antigravity": "1"},
        {},
        {"": "1"},
        {"tensorrt ": "1"},
        {"TensorRT": "1"},
        {"tensorrt": 10},
        {"tensorrt": ""},
    ],
)
def test_an_engine_names_one_library_that_is_known(manifest: Manifest, built_with: Any) -> None:
    with pytest.raises(InputError, match="built_with"):
        parse(engine(manifest, built_with=built_with))


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx"])
def test_the_known_libraries_are_taken(manifest: Manifest, library: str) -> None:
    parse(engine(manifest, built_with={library: "1.2"}))


GOOD_SETTINGS = [
    {},
    {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "bf16"},
    {"NUM_STREAMS": 256, "INFERENCE_NUM_THREADS": 4096},
]
BAD_SETTINGS: list[dict[str, Any]] = [
    {"NUM_STREAMS": 10**9},
    {"NUM_STREAMS": 0},
    {"NUM_STREAMS": -1},
    {"NUM_STREAMS": 257},
    {"NUM_STREAMS": 1.0},
    {"NUM_STREAMS": True},
    {"NUM_STREAMS": "1"},
    {"NUM_STREAMS": "AUTO"},
    {"NUM_STREAMS": 2**64},
    {"INFERENCE_NUM_THREADS": 0},
    {"INFERENCE_NUM_THREADS": 4097},
    {"INFERENCE_NUM_THREADS": "2"},
    {"INFERENCE_PRECISION_HINT": "i8"},
    {"INFERENCE_PRECISION_HINT": 32},
    {"PERFORMANCE_HINT": "FAST"},
    {"PERFORMANCE_HINT": None},
    {"CACHE_DIR": "/tmp"},
    {"EXTRA": 1},
]


@pytest.mark.parametrize("settings", GOOD_SETTINGS)
def test_settings_in_their_ranges_are_taken(manifest: Manifest, settings: Any) -> None:
    manifest["artefacts"][-1]["settings"] = settings
    parse(manifest)


@pytest.mark.parametrize("settings", BAD_SETTINGS, ids=str)
def test_every_setting_has_a_type_and_a_range(manifest: Manifest, settings: Any) -> None:
    manifest["artefacts"][-1]["settings"] = settings
    with pytest.raises(InputError, match="settings"):
        parse(manifest)
    manifest["artefacts"][-1]["settings"] = {}
    manifest["artefacts"][-1]["tuning"] = [{"settings": settings, "p50_ms": 1.0}]
    with pytest.raises(InputError, match="tuning"):
        parse(manifest)


HIDDEN = {
    **{"escape": "\x1b[32mok\x1b[0m", "newline": "a\nok  signature", "return": "a\rb"},
    **{"tab": "a\tb", "null": "a\0b", "delete": "a\x7f", "C1": "a\x9b31m", "next line": "a\x85b"},
    **{"line": "a\u2028b", "paragraph": "a\u2029b", "override": "a\u202eb", "embed": "a\u202ab"},
    **{"isolate": "a\u2066b", "pop": "a\u2069b", "left": "a\u200eb", "right": "a\u200fb"},
    **{"arabic": "a\u061cb", "at the end": "a\n", "long": "a" * 1001},
}
NAMES: dict[str, Callable[[Manifest, str], Any]] = {
    "label": lambda m, text: m["labels"].__setitem__(0, text),
    "variant": lambda m, text: m.update(variant=text),
    "family": lambda m, text: m.update(family=text),
    "input": lambda m, text: m["input"].update(name=text),
    "output": lambda m, text: m["outputs"].__setitem__(0, text),
    "target": lambda m, text: m["artefacts"][0].update(target=text),
    "path": lambda m, text: m["artefacts"][0].update(path=text),
    "library": lambda m, text: m["artefacts"][0].update(built_with={text: "1"}),
    "version": lambda m, text: m["artefacts"][0].update(built_with={"openvino": text}),
    "device": lambda m, text: m["artefacts"][0].update(built_for=[text]),
    "GPU": lambda m, text: m["artefacts"][0].update(gpu=text),
    "driver": lambda m, text: m["artefacts"][0].update(driver=text),
    "runtime": lambda m, text: m["artefacts"][-1]["golden"].update(produced_by=text),
    "report": lambda m, text: m["reports"][0].update(path=text),
    "licence": lambda m, text: m["licence"].update(images=text),
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_are_one_visible_line(manifest: Manifest, kind: str) -> None:
    for text in HIDDEN.values():
        changed = copy.deepcopy(manifest)
        NAMES[kind](changed, text)
        with pytest.raises(InputError, match=MANIFEST):
            parse(changed)


@pytest.mark.parametrize("label", ["", "T-shirt / top", "étagère", "猫", "كلب", "🐈", "a" * 1000])
def test_labels_of_all_languages_are_taken(manifest: Manifest, label: str) -> None:
    manifest["labels"] = [label, label]
    assert parse(manifest)["labels"] == [label, label]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(labels=["a"] * 100_001),
        lambda m: m.update(outputs=["a"] * 65),
        lambda m: m.update(artefacts=m["artefacts"][:1] * 1001),
        lambda m: m.update(reports=m["reports"][:1] * 101),
        lambda m: m["artefacts"][-1]["golden"].update(max_rel=0.51),
        lambda m: m["golden"].update(max_grey_levels=17),
        lambda m: m["artefacts"][0].update(precision="bf16"),
        lambda m: m["artefacts"][0].update(sha256="0" * 64 + "\n"),
        lambda m: m.update(run="0" * 64 + "\n"),
        lambda m: m["artefacts"][0].update(seconds=-1),
    ],
)
def test_lists_and_tolerances_are_bounded(
    manifest: Manifest, change: Callable[[Manifest], Any]
) -> None:
    change(manifest)
    with pytest.raises(InputError, match=MANIFEST):
        parse(manifest)


def test_a_file_that_is_named_often_is_read_once(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads((stored / MANIFEST).read_text())
    manifest["reports"] = [manifest["reports"][0]] * 100
    manifest["environment"]["again"] = [manifest["golden"]["images"]] * 1000
    write_manifest(stored, manifest)
    read: list[Path] = []
    digest = reader.sha256_file
    monkeypatch.setattr(reader, "sha256_file", lambda path: (read.append(path), digest(path))[1])
    open_bundle(stored)
    assert len(read) == len(set(read)) > 5
