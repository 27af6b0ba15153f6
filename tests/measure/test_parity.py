"""Parity rows catch what must not pass."""

from __future__ import annotations

import numpy as np
import pytest

from cmt.errors import GateError
from cmt.measure.parity import TOLERANCES, Tolerance, compare_outputs, require, tolerance_for

REFERENCE = [np.random.default_rng(0).standard_normal((8, 10)).astype(np.float32)]


def test_identical_outputs_pass_with_zero_difference() -> None:
    row = compare_outputs("onnx", REFERENCE, REFERENCE, TOLERANCES["fp32"])
    assert row["passed"]
    assert (row["max_abs"], row["max_rel"], row["top1_agreement"]) == (0, 0, 1)
    assert row["cosine"] == pytest.approx(1)


def test_one_changed_logit_beyond_the_tolerance_names_the_arrow() -> None:
    ours = [REFERENCE[0].copy()]
    ours[0][3, 4] += 0.01
    row = compare_outputs("openvino/fp32", ours, REFERENCE, Tolerance(max_rel=1e-4))
    assert row["max_abs"] == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(GateError, match="openvino/fp32"):
        require(row)


def test_cosine_is_the_worst_image_not_the_mean() -> None:
    ours = [REFERENCE[0].copy()]
    ours[0][5] *= -1
    assert compare_outputs("x", ours, REFERENCE, Tolerance(cosine=0.9))["cosine"] < -0.99


def test_nan_fails_every_tolerance() -> None:
    ours = [np.full_like(REFERENCE[0], np.nan)]
    for tolerance in (*TOLERANCES.values(), Tolerance()):
        assert not compare_outputs("x", ours, REFERENCE, tolerance)["passed"]


def test_feature_maps_have_no_top1_and_the_worst_map_counts() -> None:
    maps = [np.ones((2, 4, 8, 8), np.float32), np.ones((2, 8, 4, 4), np.float32)]
    ours = [maps[0], maps[1] * 1.5]
    row = compare_outputs("x", ours, maps, Tolerance(max_rel=0.1))
    assert row["top1_agreement"] is None
    assert row["max_rel"] == pytest.approx(0.5)
    assert not row["passed"]


def test_bf16_may_change_more_than_fp16_but_no_broken_graph_passes() -> None:
    wide, narrow = tolerance_for("fp16", "bf16"), tolerance_for("fp16", "f32")
    half = [REFERENCE[0] + np.float32(0.1) * REFERENCE[0].max() * np.sign(REFERENCE[0])]
    assert compare_outputs("openvino/fp16", half, REFERENCE, wide)["passed"]
    assert not compare_outputs("openvino/fp16", half, REFERENCE, narrow)["passed"]
    shuffled = [REFERENCE[0][:, ::-1]]
    assert not compare_outputs("openvino/fp16", shuffled, REFERENCE, wide)["passed"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_other_files_keep_their_tolerance_in_bf16(precision: str) -> None:
    assert tolerance_for(precision, "bf16") == tolerance_for(precision)
