"""Shards of images answered in any order, merged: bit for bit what one run answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from cmt.calib_data.preprocessing import Preprocessing
from cmt.calib_data.reading import image_list, part, read_images
from cmt.calib_data.sources import bundled
from cmt.errors import GateError, InputError
from cmt.measure.shards import (
    AskedFile,
    FileAnswers,
    ShardTask,
    answer_shard,
    merge,
    outputs_of,
    reduced,
    shard_size,
)
from cmt.measure.statistics import compare, compare_answers
from cmt.network import CMT
from cmt.targets.base import Runner
from cmt.targets.reference import torch_runner

COUNT = 26
PREPROCESSING = Preprocessing((32, 32), (36, 36))
KEPT = np.array([0, 3, 9, 25])


@pytest.fixture
def runner(make_tiny: Callable[..., CMT]) -> Runner:
    torch.set_num_threads(1)
    return torch_runner(make_tiny("official", 32, num_classes=7))


def task_of(begin: int, end: int, batch: int = 4, callers: int = 1) -> ShardTask:
    source = bundled("validation")
    keys, digests = zip(*[(source.key(i), source.digest(i)) for i in range(COUNT)], strict=True)
    images = image_list(source.origin(), PREPROCESSING, list(keys), list(digests))
    file: AskedFile = {
        "name": "torch",
        "runtime": "torch",
        "path": "",
        "sha256": {},
        "settings": None,
        "threads": 1,
        "batch": batch,
        "callers": callers,
        "in_graph": False,
    }
    whole = [int(place) - begin for place in KEPT if begin <= place < end]
    task: ShardTask = {"images": part(images, range(begin, end)), "files": [file], "whole": whole}
    return json.loads(json.dumps(task))


def answered(runner: Runner, size: int, **more: int) -> FileAnswers:
    """In shards of a size, the last one first."""
    ranges = [(begin, min(begin + size, COUNT)) for begin in range(0, COUNT, size)]
    made = {r: answer_shard(task_of(*r, **more), load=lambda _: runner) for r in ranges[::-1]}
    return merge([made[r]["torch"] for r in ranges], KEPT)


def assert_same(found: FileAnswers, expected: FileAnswers) -> None:
    for name in ("first", "logits", "finite", "places"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for ours, theirs in zip(found.whole, expected.whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("callers", [1, 3])
def test_merged_shards_are_a_single_run_to_the_bit(runner: Runner, callers: int) -> None:
    single = answered(runner, COUNT)
    assert_same(answered(runner, 8, callers=callers), single)
    pixels = read_images(task_of(0, COUNT)["images"])["pixels"]
    (logits,) = outputs_of(runner, PREPROCESSING, pixels, 4)
    np.testing.assert_array_equal(single.first[:, 0], logits.argmax(1))
    np.testing.assert_array_equal(single.at(KEPT[1:])[0], logits[KEPT[1:]])
    with pytest.raises(ValueError, match="not all outputs"):
        single.at(np.array([4]))


def test_figures_of_merged_shards_are_those_of_all_logits(runner: Runner) -> None:
    labels, rng = np.arange(COUNT) % 7, np.random.default_rng(0)
    pixels = read_images(task_of(0, COUNT)["images"])["pixels"]
    (logits,) = outputs_of(runner, PREPROCESSING, pixels, 4)
    ours = (logits + rng.normal(0, logits.std(), logits.shape)).astype(np.float32)
    ours[3] = logits[5] = 1.5  # all alike: the lower class comes first
    shards = np.array_split(np.arange(COUNT), 4)

    def merged(array: np.ndarray) -> FileAnswers:
        return merge([reduced([array[places]], []) for places in shards], KEPT[:0])

    assert compare_answers(merged(ours), merged(logits), labels) == compare(ours, logits, labels)


def test_answers_that_are_no_numbers_and_labels_beyond_the_classes_are_refused() -> None:
    logits = np.eye(4, 3, dtype=np.float32)
    good = merge([reduced([logits], [])], KEPT[:0])
    bad = replace(good, finite=np.array([True, False, True, True]))
    with pytest.raises(GateError, match="the candidate answers 1 of 4 images with NaN"):
        compare_answers(bad, good, np.zeros(4, int))
    with pytest.raises(GateError, match="the baseline answers 1 of 4"):
        compare_answers(good, bad, np.zeros(4, int))
    with pytest.raises(InputError, match="labels run from 0 to 3"):
        compare_answers(good, good, np.arange(4))


def test_of_feature_maps_every_output_is_kept_and_one_that_is_no_number_is_told() -> None:
    maps = [np.ones((3, 2, 4, 4), np.float32), np.ones((3, 5, 2, 2), np.float32)]
    maps[1][1, 0, 0, 0] = np.inf
    found = merge([reduced(maps, [0, 2])], np.array([0, 2]))
    assert found.finite.tolist() == [True, False, True]
    assert (found.classes, found.first.shape) == (0, (3, 0))
    assert [array.shape for array in found.at(np.array([2]))] == [(1, 2, 4, 4), (1, 5, 2, 2)]


@pytest.mark.parametrize(
    ("image_bytes", "batch", "size"),
    [(3072, 16, 1024), (150_528, 48, 864), (786_432, 16, 160), (150_528, 4096, 4096)],
)
def test_a_shard_is_whole_batches_and_bounded_in_bytes(
    image_bytes: int, batch: int, size: int
) -> None:
    assert shard_size(image_bytes, batch) == size
