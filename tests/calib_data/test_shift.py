"""Distance between two sets of images."""

from __future__ import annotations

import numpy as np
import pytest

from cmt.calib_data.shift import distance
from cmt.calib_data.sources import IdxImages, Subset, bundled, hold_out


def pictures(count: int, seed: int) -> np.ndarray:
    """Noise around a colour and a brightness of its own for each picture."""
    rng = np.random.default_rng(seed)
    colours = rng.uniform(40, 200, (count, 1, 1, 3))
    return np.clip(rng.normal(colours, 30, (count, 16, 16, 3)), 0, 255).astype(np.uint8)


def test_pictures_of_one_kind_are_near_each_other() -> None:
    assert distance(pictures(300, 0), pictures(300, 1))[0] < 0.3


@pytest.mark.parametrize(
    ("change", "feature"),
    [
        (lambda x: np.repeat(x.mean(3, keepdims=True), 3, 3), "colour"),
        (lambda x: np.clip(x * [1, 1, 2.0], 0, 255), "blue"),
        (lambda x: x / 4 + 90, "contrast"),
    ],
)
def test_what_was_changed_is_far_and_is_named(change, feature: str) -> None:  # type: ignore[no-untyped-def]
    changed = change(pictures(300, 1).astype(np.float64)).astype(np.uint8)
    far, name = distance(changed, pictures(300, 0))
    assert far > 1
    assert name == feature


def test_pictures_that_do_not_vary_are_not_infinitely_far() -> None:
    assert distance(np.full((9, 4, 4, 3), 100, np.uint8), np.full((9, 4, 4, 3), 100, np.uint8)) == (
        0.0,
        "red",
    )


@pytest.mark.parametrize(
    ("total", "count", "expected"), [(1024, 512, (512, 512)), (600, 600, (450, 150))]
)
def test_images_are_held_out_of_all_classes(
    total: int, count: int, expected: tuple[int, int]
) -> None:
    source: IdxImages = bundled("calibration")
    chosen, held = hold_out(Subset(source, np.arange(total)), count, 512, seed=0)
    assert (len(chosen), len(held)) == expected
    assert not set(chosen) & set(held)
    labels = np.asarray(source.labels)
    assert np.bincount(labels[chosen]).min() > 0.7 * expected[0] / 10


def test_a_subset_is_a_source_of_its_own() -> None:
    source = bundled("calibration")
    subset = Subset(source, np.array([3, 7]), "held out")
    assert len(subset) == 2
    assert subset.key(1) == source.key(7)
    assert subset.digest(0) == source.digest(3)
    assert list(subset.labels or ()) == [source.labels[3], source.labels[7]]  # type: ignore[index]
    assert subset.load(1).tobytes() == source.load(7).tobytes()
    assert subset.description.endswith(", held out")
