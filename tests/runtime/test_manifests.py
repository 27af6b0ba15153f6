"""C++ and Python take the same manifests: what one refuses, the other does not run."""

from __future__ import annotations

import copy
import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmt.bundle.manifest import parse_manifest
from cmt.errors import InputError

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus" / "manifest"
Accepts = Callable[[list[bytes]], list[bool]]
Place = tuple[str | int, ...]

READ_BY_CPP = (
    *("schema", "outputs", "labels", "artefacts", "golden"),
    *(f"input/{name}" for name in ("shape", "dtype", "layout", "colour_order", "range")),
    *(f"input/{name}" for name in ("exif_orientation", "resize", "crop", "mean", "std")),
)
# Of a file's entry, the path and the hash are held against the file itself when it is opened.
# The others C++ has no use for.
LATER = ("path", "sha256", "produced_by", "built_with", "built_for", "target", "precision")
LATER += ("seconds", "workspace_bytes", "messages", "tuning", "layers", "on_gpu")
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
    found["artefacts"][-1] |= {**engine, "dla": {"core": 0, "layers": 2, "on_gpu": ["x"]}}
    return found


def places(value: Any, place: Place = ()) -> list[Place]:
    """Every place within a manifest that both languages look at."""
    found = [place] if place else []
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            name = "/".join(map(str, (*place, key)))
            read = any(name.startswith(r) or r.startswith(name) for r in READ_BY_CPP)
            if read and key not in LATER and key != "bytes":
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
