"""Loaded files as callables: what memory they take a batch from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cmt.targets.registry import LOADERS


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_memory_that_is_read_only_or_scattered_gives_the_same_answer_and_is_left_alone(
    float_graph: Callable[[str], Path], runtime: str
) -> None:
    run = LOADERS[runtime](float_graph("official"), 1)
    batch = np.random.default_rng(0).standard_normal((2, 3, 64, 64), np.float32)
    (expected,) = run(batch)
    frozen = batch.copy()
    frozen.flags.writeable = False
    scattered = np.repeat(batch, 2, axis=3)[..., ::2]
    assert not scattered.flags.c_contiguous
    for same in (frozen, scattered):
        (answer,) = run(same)
        np.testing.assert_array_equal(answer, expected)
    run(np.zeros_like(batch))
    np.testing.assert_array_equal(answer, expected)
    np.testing.assert_array_equal(frozen, batch)
