"""Errors of units: what they count, and how they are ordered."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from cmt.quantize.sensitivity import answers_changed, errors, measure, relative_error

REFERENCE = np.array([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0]], np.float32)


def test_errors_are_those_of_their_definitions() -> None:
    logits = REFERENCE.copy()
    logits[0] = [1.0, 0.0, 2.0]
    found = errors(logits, REFERENCE)
    assert relative_error(logits, REFERENCE) == pytest.approx(2 / 15)
    assert found["sqnr_db"] == pytest.approx(10 * np.log10(15 / 2))
    assert found["changed"] == 0.5
    softmax = np.exp([2, 0, 1]) / np.exp([2, 0, 1]).sum()
    assert found["kl"] == pytest.approx((softmax[0] - softmax[2]) / 2, rel=1e-6)


def test_logits_that_are_no_numbers_count_as_changed_and_have_no_decibels() -> None:
    logits = REFERENCE.copy()
    logits[1, 1] = np.inf  # the first answer stays the same
    assert answers_changed(logits, REFERENCE) == 0.5
    assert errors(logits, REFERENCE)["sqnr_db"] is None
    assert relative_error(logits, REFERENCE) == np.inf


def test_the_most_sensitive_unit_comes_first() -> None:
    graphs = {"a": 1.001, "broken": np.nan, "b": 1.1}
    models = {name: onnx.ModelProto(producer_name=name) for name in graphs}
    rows = measure(
        [({"unit": name}, model, REFERENCE) for name, model in models.items()],
        lambda model: REFERENCE * np.float32(graphs[model.producer_name]),
    )
    assert [row["unit"] for row in rows] == ["broken", "b", "a"]
    assert {row["images"] for row in rows} == {2}
