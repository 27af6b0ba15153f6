"""Evaluation in shards: finished ones outlive a run, and neither order nor pixels kept matter."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cmt.calib_data.reading import PixelsOnDemand
from cmt.export import evaluation, image_shards
from cmt.export.answers import asked_reference, reference_network
from cmt.export.context import Context
from cmt.export.evaluation import evaluate
from cmt.export.options import ExportOptions
from cmt.export.pipeline import make_plan, start
from cmt.measure import shards
from cmt.measure.progress import ProgressBars
from cmt.measure.shards import Answered, FileAnswers, ShardTask, answer_shard

Start = Callable[[], Context]


@pytest.fixture
def begin(
    tiny_weights: Path, photos: Path, tiny: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Start:
    """Begins or resumes a run whose shards have eight images."""
    monkeypatch.setattr(shards, "SHARD", 8)
    monkeypatch.setattr(evaluation, "SHARD", 8)
    options = ExportOptions(
        "tiny", ("onnxruntime",), weights=tiny_weights, val_data=photos, threads=1
    )

    def run() -> Context:
        return start(make_plan(options), tmp_path / "work", ProgressBars(False))

    return run


def evaluated(context: Context) -> FileAnswers:
    asked = asked_reference(context, reference_network(context))
    (answers,) = evaluate(context, [asked]).values()
    return answers


def assert_same(found: FileAnswers, expected: FileAnswers) -> None:
    for name in ("first", "logits", "finite", "places"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_array_equal(found.whole[0], expected.whole[0])


def test_a_run_that_ends_within_an_evaluation_goes_on_behind_its_last_shard(begin: Start) -> None:
    asked: list[int] = []

    def dying(tasks: Sequence[ShardTask]) -> Generator[tuple[int, Answered], None, None]:
        asked.append(len(tasks))
        yield 2, answer_shard(tasks[2])
        raise KeyboardInterrupt

    def backwards(tasks: Sequence[ShardTask]) -> Generator[tuple[int, Answered], None, None]:
        asked.append(len(tasks))
        for place in reversed(range(len(tasks))):
            yield place, answer_shard(tasks[place])

    with pytest.raises(KeyboardInterrupt):
        evaluated(replace(begin(), shards=dying))
    assert len(list((begin().stages.workspace / "answers").iterdir())) == 1
    resumed = evaluated(replace(begin(), shards=backwards))
    assert asked == [3, 2]
    again = evaluated(replace(begin(), shards=backwards))
    assert asked == [3, 2, 0]
    assert_same(again, resumed)


def test_answers_are_the_same_where_no_pixels_are_kept(
    begin: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = begin()
    assert len(list(kept.stages.workspace.rglob("pixels.npy"))) == 3
    expected = evaluated(kept)
    (tmp_path / "work").rename(tmp_path / "kept")

    monkeypatch.setattr(image_shards, "MOST_KEPT", 0)
    streamed = begin()
    assert isinstance(streamed.images.validation.pixels, PixelsOnDemand)
    assert list(streamed.stages.workspace.rglob("pixels.npy")) == []
    assert_same(evaluated(streamed), expected)
    for name in ("keys", "digests", "skipped", "available", "unturned"):
        ours, theirs = streamed.images.validation, kept.images.validation
        assert getattr(ours, name) == getattr(theirs, name)
    np.testing.assert_array_equal(ours.batch(3), theirs.batch(3))
