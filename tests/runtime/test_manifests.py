"""C++ and Python take the same manifests: what one refuses, the other does not run."""

from __future__ import annotations

import copy
import json
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import manifests_alike
import pytest

from cmt.bundle.manifest import parse_manifest
from cmt.errors import InputError

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus" / "manifest"
Accepts = Callable[[list[bytes]], list[bool]]
Place = tuple[str | int, ...]

VALUES: list[Any] = [
    *(None, True, False, "", "x", "é", [], {}, [[]], [0], [0, 1], [0.0, 1.0], {"x": 1}),
    *(0, -1, 1, 1.0, 2, 3, 3.0, 4, 32, 160, 160.0, 224, 1024, 4096, 4097, 16384, 16385, 0.5),
    *(
        1e-300,
        1e-40,
        1e30,
        1e39,
        1e300,
        2**31,
        2**63 - 1,
        2**63,
        2**64 - 1,
        2**64,
        10**30,
        -(2**63),
    ),
]


@pytest.fixture
def accepted_by_cpp(runtime: Path, tmp_path: Path) -> Accepts:
    """Which of these texts C++ takes for a manifest."""

    def run(texts: list[bytes]) -> list[bool]:
        paths = [tmp_path / f"{i}.json" for i in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_bytes(text)
        result = subprocess.run(
            [runtime / "tests" / "read_manifests"],
            input="".join(f"{path}\n" for path in paths),
            capture_output=True,
            text=True,
            errors="replace",  # messages quote what they refuse
            check=True,
        )
        lines = result.stdout.splitlines()
        assert len(lines) == len(texts)
        return [line == "ok" for line in lines]

    return run


def accepted_by_python(text: bytes) -> bool:
    try:
        parse_manifest(text)
    except InputError:
        return False
    return True


@pytest.fixture
def manifest() -> dict[str, Any]:
    found = json.loads((CORPUS / "bundle").read_bytes())
    usual = found["input"]["shape"][0]
    engine = {"batches": [1, usual, 32], "compatible": ["version", "hardware"]}
    last = found["artefacts"][-1]
    last |= {**engine, "dla": {"core": 0, "layers": 2, "on_gpu": ["x"]}, "gpu": "x", "driver": "x"}
    last["golden"]["outputs_f32"] = copy.deepcopy(last["golden"]["outputs"])
    return found


def places(value: Any, place: Place = ()) -> list[Place]:
    """Every place within a manifest; of the environment, which may say anything, the first."""
    found = [place] if place else []
    if isinstance(value, dict | list) and place != ("environment",):
        for key in value if isinstance(value, dict) else range(len(value)):
            found += places(value[key], (*place, key))
    return found


def changed(manifest: dict[str, Any], place: Place, value: Any) -> bytes:
    """The text of a manifest with another value at this place."""
    other = copy.deepcopy(manifest)
    holder: Any = other
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    return json.dumps(other).encode()


def test_every_place_with_any_value_is_read_alike(
    manifest: dict[str, Any], accepted_by_cpp: Accepts
) -> None:
    rng = random.Random(0)
    found = places(manifest)
    assert len(found) > 50
    changes = [(place, value) for place in found for value in rng.sample(VALUES, 15)]
    texts = [changed(manifest, place, value) for place, value in changes]
    answers = zip(changes, map(accepted_by_python, texts), accepted_by_cpp(texts), strict=True)
    differ = [(change, ours) for change, ours, theirs in answers if ours != theirs]
    assert not differ, "what Python accepts and C++ does not, or the other way round"
    assert 20 < sum(map(accepted_by_python, texts)) < len(texts) / 2
    assert accepted_by_cpp([json.dumps(manifest).encode()]) == [True]


def test_filters_are_read_alike(manifest: dict[str, Any], accepted_by_cpp: Accepts) -> None:
    place = ("input", "resize", "filter")
    known = ["pillow-bicubic", "pillow-bilinear"]
    others = ["pillow-box", "bilinear", "pillow-", "pillow-Bilinear", "", 0, None]
    texts = [changed(manifest, place, value) for value in [*known, *others]]
    expected = [True] * len(known) + [False] * len(others)
    assert list(map(accepted_by_python, texts)) == expected
    assert accepted_by_cpp(texts) == expected


def test_image_ranges_are_read_alike(manifest: dict[str, Any], accepted_by_cpp: Accepts) -> None:
    good = [[0, 4095], [0.0, 1.0], [-1.5, 1e6]]
    one_double = [2**53, 2**53 + 1]
    bad = [[0, 0], [1, 0], one_double, [0], [0, 1, 2], [-1e308, 1e308], ["0", "1"], None, "0,1", {}]
    texts = [changed(manifest, ("input", "image_range"), value) for value in [*good, *bad]]
    expected = [True] * len(good) + [False] * len(bad)
    assert list(map(accepted_by_python, texts)) == expected
    assert accepted_by_cpp(texts) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b'"schema": 1,', b'"schema": 1, "schema": 1,'),
        lambda text: text.replace(b"0.485", b"NaN"),
        lambda text: text.replace(b"0.485", b"1e999"),
        lambda text: text.replace(b"0.485", b"0.4850000000000000000000000001"),
        lambda text: text.replace(b"0.485", b"1" + b"0" * 30),
        lambda text: text.replace(
            b'"environment": {', b'"environment": {"x": ' + b"[" * 62 + b"]" * 62 + b","
        ),
        lambda text: text.replace(
            b'"environment": {', b'"environment": {"x": ' + b"[" * 63 + b"]" * 63 + b","
        ),
        lambda text: text.replace(b'"tench"', b'"\\ud800"'),
        lambda text: text.replace(b'"tench"', b'"\\ud83d\\ude00"'),
        lambda text: text.replace(b'"tench"', b'"\xff"'),
        lambda text: text.replace(b'"tench"', b'"a\nb"'),
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.decode().encode("utf-16"),
        lambda text: text + b" \n",
        lambda text: text + b"{}",
        lambda text: text + b"\0",
        lambda text: text + b"\0{}",
        lambda text: text[:-3],
        lambda text: b"[" * 100_000,
        lambda text: b"",
        lambda text: b"[]",
    ],
)
def test_every_text_is_read_alike(
    change: Callable[[bytes], bytes], manifest: dict[str, Any], accepted_by_cpp: Accepts
) -> None:
    text = json.dumps(manifest).encode()
    other = change(text)
    assert other != text
    assert accepted_by_cpp([other]) == [accepted_by_python(other)]


def objects(value: Any, place: Place = ()) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Every object within a manifest whose names are known."""
    if isinstance(value, dict) and place[-1:] not in (("environment",), ("built_with",)):
        yield place, value
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            if key != "environment":
                yield from objects(value[key], (*place, key))


def test_names_that_are_not_known_are_refused_anywhere(
    manifest: dict[str, Any], accepted_by_cpp: Accepts
) -> None:
    texts = [changed(manifest, (*place, "x"), 1) for place, _ in objects(manifest)]
    assert len(texts) > 15
    assert not any(accepted_by_cpp(texts))
    assert not any(map(accepted_by_python, texts))


def test_names_that_are_missing_are_missed_alike(
    manifest: dict[str, Any], accepted_by_cpp: Accepts
) -> None:
    texts = []
    for place, value in objects(manifest):
        for name in value:
            kept = {key: item for key, item in value.items() if key != name}
            texts.append(changed({"x": manifest}, ("x", *place), kept))
    texts = [json.dumps(json.loads(text)["x"]).encode() for text in texts]
    assert len(texts) > 70
    answers = accepted_by_cpp(texts)
    assert answers == list(map(accepted_by_python, texts))
    assert 3 < sum(answers) < len(texts) / 2


@pytest.mark.parametrize("value", [{}, {"x": 1}, {"path": "x"}], ids=json.dumps)
def test_objects_that_say_nothing_are_refused_anywhere(
    manifest: dict[str, Any], accepted_by_cpp: Accepts, value: dict[str, Any]
) -> None:
    found = [place for place, _ in objects(manifest) if place]
    assert {("artefacts", i) for i in range(len(manifest["artefacts"]))} < set(found)
    texts = [changed(manifest, place, value) for place in found]
    expected = [place[-1] == "settings" and value == {} for place in found]
    assert accepted_by_cpp(texts) == expected
    assert list(map(accepted_by_python, texts)) == expected


@pytest.mark.parametrize(
    ("entry", "good"),
    [
        ({"path": "a", "sha256": "0" * 64, "bytes": 1}, True),
        ({"path": "a", "sha256": "0" * 64, "bytes": 1, "more": []}, True),
        ({"path": 5}, True),
        ({"sha256": {"path": []}}, True),
        ({"path": 5, "sha256": "0" * 64, "bytes": 1}, False),
        ({"path": "a", "sha256": 5, "bytes": 1}, False),
        ({"path": "a", "sha256": "0" * 63, "bytes": 1}, False),
        ({"path": "a", "sha256": "0" * 64, "bytes": "1"}, False),
        ({"path": "a", "sha256": "0" * 64, "bytes": 1.0}, False),
        ({"path": "a", "sha256": "0" * 64, "bytes": -1}, False),
        ({"path": "a", "sha256": "0" * 64, "bytes": True}, False),
        ({"path": "a", "sha256": "0" * 64}, False),
        ({"path": None, "sha256": None}, False),
        ({"path": ["a"], "sha256": {}}, False),
        ({"path": "", "sha256": "0" * 64, "bytes": 1}, False),
        ({"path": "a\nb", "sha256": "0" * 64, "bytes": 1}, False),
        ({"path": "report.json", "sha256": "0" * 64, "bytes": 1}, False),
    ],
)
def test_what_is_named_like_a_file_is_one(
    manifest: dict[str, Any], accepted_by_cpp: Accepts, entry: dict[str, Any], good: bool
) -> None:
    texts = [
        changed(manifest, ("environment",), {"x": where}) for where in (entry, [{"deeper": entry}])
    ]
    assert accepted_by_cpp(texts) == [good, good]
    assert list(map(accepted_by_python, texts)) == [good, good]


def test_paths_are_within_the_bundle(manifest: dict[str, Any], accepted_by_cpp: Accepts) -> None:
    bad = ["../x", "a/../b", "/x", "a//b", "a/", "./a", ".", "..", "C:/x", "a\\b", "a\0", ""]
    good = ["a", "a/b", "..a", "a..", ".a/b", "a b", "\u6f22/\u5b57"]
    entry = {"sha256": "0" * 64, "bytes": 1}
    texts = [
        changed(manifest, ("environment",), {"x": {"path": path, **entry}}) for path in bad + good
    ]
    expected = [False] * len(bad) + [True] * len(good)
    assert accepted_by_cpp(texts) == expected
    assert list(map(accepted_by_python, texts)) == expected


def test_the_corpus_is_answered_alike(accepted_by_cpp: Accepts) -> None:
    texts = list(manifests_alike.corpus().values())
    assert accepted_by_cpp(texts) == list(map(accepted_by_python, texts))


def test_manifests_that_are_nearly_right_are_answered_alike(accepted_by_cpp: Accepts) -> None:
    texts = list(manifests_alike.nearly_right(500, seed=1))
    answers = list(map(accepted_by_python, texts))
    assert accepted_by_cpp(texts) == answers
    assert 10 < sum(answers) < 250


SETTINGS = {
    "NUM_STREAMS": ([1, 2, 256], [0, -1, 257, 10**9, 2**63, 1.0, 1.5, "1", "AUTO", "", True, None]),
    "INFERENCE_NUM_THREADS": ([1, 64, 4096], [0, -1, 4097, 10**9, 2**64, 2.0, "2", "x", False, []]),
    "INFERENCE_PRECISION_HINT": (["f32", "bf16", "f16"], ["", "f64", "dynamic", 32, None, ["f32"]]),
    "PERFORMANCE_HINT": (["LATENCY", "THROUGHPUT"], ["", "latency", "x" * 10**6, 1, True, {}]),
    "CACHE_DIR": ([], ["/tmp/x", "", 1]),
    "num_streams": ([], [1]),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_have_types_and_ranges(
    manifest: dict[str, Any], accepted_by_cpp: Accepts, name: str
) -> None:
    for values, good in zip(SETTINGS[name], (True, False), strict=True):
        place = ("artefacts", 0, "settings")
        texts = [changed(manifest, place, {name: value}) for value in values]
        assert accepted_by_cpp(texts) == [good] * len(values)
        assert list(map(accepted_by_python, texts)) == [good] * len(values)


@pytest.mark.parametrize(
    "place",
    [
        ("variant",),
        ("labels", 0),
        ("outputs", 0),
        ("artefacts", 0, "path"),
        ("artefacts", 0, "target"),
        ("artefacts", 1, "golden", "produced_by"),
        ("artefacts", -1, "gpu"),
        ("artefacts", -1, "driver"),
        ("input", "name"),
        ("family",),
        ("artefacts", 0, "built_for", 0),
        ("artefacts", 0, "built_with", "openvino"),
        ("golden", "photo", "path"),
        ("reports", 0, "path"),
        ("licence", "weights"),
    ],
    ids=lambda place: ".".join(map(str, place)),
)
def test_names_are_visible(
    manifest: dict[str, Any], accepted_by_cpp: Accepts, place: Place
) -> None:
    bad = [*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F)]
    bad += range(0x2066, 0x206A)
    good = [0x20, 0x7E, 0xA0, 0xE9, 0x200C, 0x200D, 0x2027, 0x202F, 0x2065, 0x206A, 0x6F22, 0x1F600]
    texts = [changed(manifest, place, f"a{chr(c)}b") for c in (*bad, *good)]
    texts += [changed(manifest, place, text) for text in ("x" * 1000, "x" * 1001, "x\n", "")]
    empty = place[0] == "labels"  # of a class without a name
    expected = [False] * len(bad) + [True] * len(good) + [True, False, False, empty]
    assert accepted_by_cpp(texts) == expected
    assert list(map(accepted_by_python, texts)) == expected


@pytest.mark.parametrize(
    ("built_with", "good"),
    [
        ({"tensorrt": "10.3.0"}, True),
        ({"tensorrt_rtx": "1.7"}, True),
        ({}, False),
        ({"openvino": "2026.4"}, False),
        ({"TensorRT": "10"}, False),
        ({"tensorrt": "10.3.0", "tensorrt_rtx": "1.7"}, False),
        ({"tensorrt": "10.3.0", "x": "1"}, False),
        ({"tensorrt": 10}, False),
        ({"tensorrt": "10\n"}, False),
        ([], False),
    ],
)
def test_an_engine_is_built_with_one_library(
    manifest: dict[str, Any], accepted_by_cpp: Accepts, built_with: Any, good: bool
) -> None:
    manifest["artefacts"][0]["target"] = "tensorrt"
    text = changed(manifest, ("artefacts", 0, "built_with"), built_with)
    assert accepted_by_cpp([text]) == [good]
    assert accepted_by_python(text) == good


def test_lists_and_tolerances_have_bounds(
    manifest: dict[str, Any], accepted_by_cpp: Accepts
) -> None:
    answers = manifest["artefacts"][-1]["golden"]["outputs"]
    sha256 = manifest["reports"][0]["sha256"]
    texts = {
        changed(manifest, ("labels",), ["x"] * 100_000): True,
        changed(manifest, ("labels",), ["x"] * 100_001): False,
        changed(manifest, ("outputs",), ["x"] * 65): False,
        changed(manifest, ("reports",), manifest["reports"][:1] * 100): True,
        changed(manifest, ("reports",), manifest["reports"][:1] * 101): False,
        changed(manifest, ("artefacts",), manifest["artefacts"][:1] * 1001): False,
        changed(manifest, ("artefacts", 0, "built_for"), ["x"] * 101): False,
        changed(manifest, ("artefacts", 0, "precision"), "bf16"): False,
        changed(manifest, ("artefacts", -1, "golden", "outputs_f32"), answers * 2): False,
        changed(manifest, ("artefacts", -1, "golden", "outputs_f32"), []): False,
        changed(manifest, ("reports", 0, "sha256"), f"{sha256}\n"): False,
        changed(manifest, ("reports", 0, "sha256"), sha256.upper()): sha256.isdecimal(),
        changed(manifest, ("run",), "0" * 64): True,
        changed(manifest, ("run",), "0" * 64 + "\n"): False,
        changed(manifest, ("calibration", "sha256"), "0" * 64 + "\n"): False,
        changed(manifest, ("artefacts", 1, "golden", "max_rel"), 0.51): False,
        changed(manifest, ("golden", "max_grey_levels"), 16): True,
        changed(manifest, ("golden", "max_grey_levels"), 17): False,
        changed(manifest, ("artefacts", 1, "golden", "max_rel"), 0.5): True,
        changed(manifest, ("artefacts", 1, "golden", "max_rel"), 1e30): False,
        changed(manifest, ("golden", "max_grey_levels"), 255): False,
        changed(manifest, ("reports",), []): False,
    }
    assert accepted_by_cpp(list(texts)) == list(texts.values())
    assert list(map(accepted_by_python, texts)) == list(texts.values())
