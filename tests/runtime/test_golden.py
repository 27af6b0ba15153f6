"""What the golden answers are held against: arrays as NumPy writes them, of finite numbers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_files import BAD, GOOD

from cmt.bundle import golden
from cmt.bundle.reader import open_bundle
from cmt.bundle.writer import describe_file, write_manifest
from cmt.errors import InputError
from cmt.targets.registry import computes_otherwise

IR, ANSWERS = "openvino/cmt_tiny.int8.xml", "golden/openvino-int8-logits.npy"


@pytest.mark.parametrize(("files", "good"), [(GOOD, True), (BAD, False)], ids=["good", "bad"])
def test_arrays_are_taken_as_numpy_writes_them_alone(
    runtime: Path, tmp_path: Path, files: dict[str, bytes], good: bool
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    result = subprocess.run(
        [runtime / "tests" / "read_arrays"],
        input="".join(f"{tmp_path / name}\n" for name in files),
        capture_output=True,
        text=True,
        check=True,
    )
    taken = dict(zip(files, result.stdout.splitlines(), strict=True))
    assert [name for name, line in taken.items() if line.isdecimal() != good] == []


def cmt_check(runtime: Path, bundle: Path) -> subprocess.CompletedProcess[str]:
    command = [runtime / "cmt_check", bundle]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rewrite(bundle: Path, **fields: Any) -> None:
    """Fields of OpenVINO's file changed, and all hashes of golden files made anew."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    for artefact in manifest["artefacts"]:
        if artefact["path"] == IR:
            artefact.update(fields)
        for entries in artefact.get("golden", {}).values():
            for entry in entries if isinstance(entries, list) else ():
                entry |= describe_file(bundle, bundle / entry["path"])
    write_manifest(bundle, manifest)


def settings(hint: str) -> dict[str, Any]:
    return {"NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": hint}


def check_with(runtime: Path, bundle: Path, change: Callable[[np.ndarray], Any]) -> Any:
    """cmt_check on the bundle with other golden answers."""
    answers = np.load(bundle / ANSWERS)
    change(answers)
    np.save(bundle / ANSWERS, answers)
    rewrite(bundle, settings=settings("f32"))  # which any CPU computes
    return cmt_check(runtime, bundle)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [(0, 0), (7, 1), slice(None)])
def test_golden_answers_that_are_no_numbers_are_refused(
    any_runtime: Path, stored: Path, value: float, place: Any
) -> None:
    result = check_with(any_runtime, stored, lambda a: a.__setitem__(place, value))
    assert result.returncode == 2, result.stdout
    assert f"{ANSWERS} holds NaN or infinity: export the bundle again" in result.stderr


@pytest.mark.parametrize("value", [3e38, 0, -1e9])
def test_golden_answers_that_nothing_computes_fail(
    runtime: Path, stored: Path, value: float
) -> None:
    result = check_with(runtime, stored, lambda a: a.fill(value))
    assert result.returncode == 1, result.stderr
    assert "FAILED  openvino" in result.stdout


def answers_here(bundle: Path, hint: str) -> np.ndarray:
    """What OpenVINO's file answers on this machine."""
    opened = open_bundle(bundle)
    (entry,) = [a for a in opened.artefacts if a["path"] == IR]
    images = opened.preprocessing.feed(golden.golden_images(opened))
    return golden.run_artefact(opened, {**entry, "settings": settings(hint)}, images, 1)[0]


def store(bundle: Path, hint: str, expected: np.ndarray, in_float32: np.ndarray | None) -> None:
    """Put golden answers of OpenVINO's file into the bundle."""
    entry = {"produced_by": "openvino", "max_rel": 0.1, "outputs": [{"path": ANSWERS}]}
    np.save(bundle / ANSWERS, expected)
    if in_float32 is not None:
        np.save(bundle / "golden" / "f32.npy", in_float32)
        entry["outputs_f32"] = [{"path": "golden/f32.npy"}]
    rewrite(bundle, settings=settings(hint), golden=entry)


def judged_by_python(bundle: Path) -> str:
    checks = {check.name: check.passed for check in golden.verify(open_bundle(bundle), 1)}
    return {True: "ok", False: "FAILED", None: "skipped"}[checks[IR]]


@pytest.mark.parametrize("hint", ["f32", "bf16"])
@pytest.mark.parametrize(
    ("error", "in_float32", "good"),
    [
        *((0, None, True), (0.08, None, True), (0.12, None, False), (9, None, False)),
        *((0.3, 0, True), (0, 0.3, True), (0.3, 0.08, True), (0.08, 0.3, True)),
        *((0.3, 0.12, False), (-0.3, 0.3, False), (0.12, 9, False), (0, 0, True)),
    ],
)
def test_a_machine_may_answer_in_either_arithmetic_and_nothing_between(
    any_runtime: Path,
    stored: Path,
    hint: str,
    error: float,
    in_float32: float | None,
    good: bool,
) -> None:
    here = answers_here(stored, hint)
    # The share is of what is expected, which the error makes larger.
    offs = [
        None if e is None else (here + np.float32(e) * np.abs(here).max() * np.sign(here))
        for e in (error, in_float32)
    ]
    store(stored, hint, *offs)
    asked = {"target": "openvino", "settings": settings(hint)}
    expected = "ok" if good else "FAILED"
    if in_float32 is None and computes_otherwise(asked):
        expected = "skipped"
    result = cmt_check(any_runtime, stored)
    assert f"{expected:8}{IR}" in result.stdout, result.stdout + result.stderr
    assert result.returncode == (expected == "FAILED")
    assert judged_by_python(stored) == expected


NUMBERS = np.ones((8, 2), np.float32)
REFUSED = {
    "NaN": (NUMBERS, NUMBERS * np.nan),
    "NaN in the first": (NUMBERS * np.nan, NUMBERS),
    "fewer images": (NUMBERS, NUMBERS[:7]),
    "other sides": (NUMBERS, NUMBERS.reshape(8, 2, 1)),
    "other classes": (NUMBERS, np.ones((8, 3), np.float32)),
    "classes in both": (np.ones((8, 3), np.float32),) * 2,
    "classes alone": (np.ones((8, 3), np.float32), None),
    "images in both": (NUMBERS[:7], NUMBERS[:7]),
}


@pytest.mark.parametrize("hint", ["f32", "bf16"])
@pytest.mark.parametrize("kind", REFUSED)
def test_answers_that_are_none_of_the_file_are_refused_alike(
    runtime: Path, stored: Path, kind: str, hint: str
) -> None:
    store(stored, hint, *REFUSED[kind])
    result = cmt_check(runtime, stored)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "export" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    with pytest.raises(InputError, match=r"export|shape"):
        list(golden.verify(open_bundle(stored), 1))
