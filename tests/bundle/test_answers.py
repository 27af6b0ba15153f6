"""What the golden answers are held against: finite arrays of NumPy's, in either arithmetic."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import array_files
import numpy as np
import pytest
from array_files import GOOD, npy
from float32_answers import add_float32_answers

from cmt.bundle import golden
from cmt.bundle.arrays import read_array
from cmt.bundle.golden import Check, verify
from cmt.bundle.reader import open_bundle
from cmt.bundle.writer import describe_file
from cmt.errors import InputError
from cmt.targets import openvino
from cmt.targets.base import Array
from cmt.targets.registry import computes_otherwise

Rewrite = Callable[..., None]
IR, ANSWERS = "openvino/cmt_tiny.int8.xml", "golden/openvino-int8-logits.npy"


BAD = {**array_files.BAD, "bytes": npy(np.ones((2, 3), np.uint8))}


@pytest.mark.parametrize("name", GOOD)
def test_arrays_as_numpy_writes_them_are_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.npy").write_bytes(GOOD[name])
    expected = np.load(tmp_path / "a.npy")
    assert np.array_equal(read_array(tmp_path / "a.npy", expected.dtype.type), expected)


@pytest.mark.parametrize("name", BAD)
def test_all_other_arrays_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.npy").write_bytes(BAD[name])
    with pytest.raises(ValueError, match="it "):
        read_array(tmp_path / "a.npy", np.float32)


@pytest.fixture
def answering(stored: Path, rewrite: Rewrite, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`answering(outputs, expected, ...)`: the check of OpenVINO's file in the stored bundle.

    Args of it: what the machine answers, what is stored, the same in float32 or None, and whether
    the machine has BF16.
    """

    def check(
        outputs: list[Array], stored_answers: Array, in_float32: Array | None, bf16: bool
    ) -> Check:
        np.save(stored / ANSWERS, stored_answers)

        def change(manifest: dict[str, Any]) -> None:
            (entry,) = [a for a in manifest["artefacts"] if a["path"] == IR]
            manifest["artefacts"] = [entry]
            manifest["labels"] = []
            if in_float32 is not None:
                np.save(stored / "golden" / "f32.npy", in_float32)
                described = describe_file(stored, stored / "golden" / "f32.npy")
                entry["golden"]["outputs_f32"] = [described]

        rewrite(stored, change)
        monkeypatch.setattr(golden, "run_artefact", lambda *_: outputs)
        monkeypatch.setattr(openvino, "_has_bf16", lambda *_: bf16)
        return list(verify(open_bundle(stored), 1))[-1]

    return check


STORED = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)


def off(by: float) -> Array:
    """The stored answers, off by this share of the largest."""
    return STORED + np.float32(by * np.abs(STORED).max())


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [(0, 0), (7, 1), slice(None)])
def test_golden_answers_that_are_no_numbers_are_refused(
    answering: Any, value: float, place: Any
) -> None:
    stored = STORED.copy()
    stored[place] = value
    for answers in ((stored, STORED), (STORED, stored)):
        with pytest.raises(InputError, match=r"NaN or infinity.*export the bundle again"):
            answering([STORED], *answers, bf16=True)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
@pytest.mark.parametrize("place", [(0, 0), (7, 1), slice(None)])
def test_answers_that_are_no_numbers_fail(answering: Any, value: float, place: Any) -> None:
    outputs = STORED.copy()
    outputs[place] = value
    for in_float32 in (None, STORED):
        assert answering([outputs], STORED, in_float32, bf16=True).passed is False


@pytest.mark.parametrize("value", [0.0, 1e-40, 3e38, -1e9])
def test_answers_that_nothing_computes_fail(answering: Any, value: float) -> None:
    expected = np.full_like(STORED, value)
    assert answering([STORED], expected, None, bf16=True).passed is False


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize(
    ("error", "passed"),
    [(0, True), (0.25, True), (0.09, True), (0.3, True), (0.12, False), (0.5, False), (9, False)],
)
def test_a_machine_may_answer_in_either_arithmetic_and_nothing_between(
    answering: Any, error: float, passed: bool, bf16: bool
) -> None:
    # INT8 may differ by 0.1; what BF16 changes here is more than that.
    assert answering([off(error)], STORED, off(0.25), bf16=bf16).passed is passed


def test_without_bf16_answers_that_were_made_in_it_alone_are_left_out(answering: Any) -> None:
    check = answering([off(0.25)], STORED, None, bf16=False)
    assert check.passed is None
    assert "no BF16" in check.detail
    assert answering([off(0.25)], STORED, None, bf16=True).passed is False


@pytest.mark.parametrize("hint", ["f32", "f16", None])
def test_only_what_is_to_run_in_bf16_can_lack_it(
    hint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "_has_bf16", lambda *_: False)
    settings = {} if hint is None else {"INFERENCE_PRECISION_HINT": hint}
    assert computes_otherwise({"target": "openvino", "settings": settings}) is None


@pytest.mark.parametrize("count", [1, 3, 50_000])
def test_labels_are_as_many_as_the_answers(stored: Path, rewrite: Rewrite, count: int) -> None:
    rewrite(stored, lambda manifest: manifest.update(labels=["a"] * count))
    with pytest.raises(InputError, match=rf"answers for 2 classes and the manifest names {count}"):
        list(verify(open_bundle(stored), 1))


def test_the_files_of_a_bundle_answer_in_float32_as_is_stored(stored: Path) -> None:
    add_float32_answers(stored)
    checks = {check.name: check.passed for check in verify(open_bundle(stored), 1)}
    assert checks[IR] is True


@pytest.mark.skipif(os.name == "nt", reason="paths are text there")
def test_a_bundle_runs_from_a_path_that_is_no_utf8(stored: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(stored) + b"\xff\xfe"))
    stored.rename(folder)
    bundle = open_bundle(folder)
    images = bundle.preprocessing.feed(golden.golden_images(bundle))
    for entry in bundle.artefacts:
        (logits,) = golden.run_artefact(bundle, entry, images, 1)
        assert logits.shape == (8, 2)
