"""Batches are the same for the same step, and no image that is damaged ends a run."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cmt import InputError
from cmt.calib_data.sources import FolderImages
from cmt.training import batches
from cmt.training.batches import Batch, Batches, open_source
from cmt.training.schedule import Recipe

RECIPE = Recipe("tiny", ((32, 24, 4), (64, 8, 4)), learning_rate=1e-2, resize_ratio=1.25)


def test_the_same_step_always_gives_the_same_batch(images: FolderImages) -> None:
    data = Batches(images, RECIPE, 32, batch=4, start=8)
    every, later = list(data.ahead(range(5))), list(data.ahead(range(3, 5)))
    assert (len(every), len(later)) == (5, 2)
    assert torch.equal(every[3][0], later[0][0])
    assert torch.equal(every[3][1], later[0][1])
    assert not torch.equal(every[3][0], every[4][0])


def test_an_epoch_shows_every_image_once(images: FolderImages) -> None:
    data = Batches(images, RECIPE, 32, batch=4)
    for epoch in (range(3), range(3, 6)):
        labels = torch.cat([classes for _, classes in data.ahead(epoch)])
        assert labels.bincount().tolist() == [4, 4, 4]


def test_another_seed_gives_other_batches(images: FolderImages) -> None:
    other = Recipe("tiny", RECIPE.schedule, 1e-2, 1.25, seed=1)
    one, two = (Batches(images, r, 32, 4).make(0)[0] for r in (RECIPE, other))
    assert not torch.equal(one, two)
    assert one.shape == two.shape == (4, 3, 32, 32)


def test_an_undecodable_training_image_is_replaced_by_the_next(
    make_images: Callable[..., Path],
) -> None:
    root = make_images("a/0.png", "a/1.png", "b/0.png")
    (root / "a" / "1.png").write_bytes(b"no picture")
    data = Batches(FolderImages(root), Recipe("ti", ((32, 30, 30),), 1e-3, 1.0), 32, 30)
    _, labels = data.make(0)
    assert labels.tolist().count(1) == 20  # b/0 stands in for a/1
    assert list(data.left_out) == [1]
    assert "a/1.png" in data.left_out[1]


def test_training_images_are_read_by_a_stated_range_and_what_is_clipped_is_counted(
    make_images: Callable[..., Path],
) -> None:
    root = make_images("a/0.png", "b/0.png")
    Image.fromarray(np.full((32, 32), 4096, np.uint16)).save(root / "a" / "0.png")
    recipe = Recipe("ti", ((32, 8, 8),), 1e-3, 1.0, erasing=0.0)
    data = Batches(open_source(root, "train", (0.0, 4095.0)), recipe, 32, 8)
    pixels, labels = data.make(0)
    assert data.outside == {0: 32 * 32}
    white = torch.from_numpy(data.prepare.normalise(np.full((1, 32, 32, 3), 255, np.uint8)))
    torch.testing.assert_close(pixels[labels == 0], white.expand(4, -1, -1, -1))


BROKEN_EXIF = [struct.error("unpack requires"), SyntaxError("not a TIFF file"), ValueError("odd")]
BROKEN_EXIF += [KeyError(0x0112), TypeError("no int"), OSError("cannot"), ZeroDivisionError()]


@pytest.mark.parametrize("error", BROKEN_EXIF, ids=lambda error: type(error).__name__)
def test_an_image_that_cannot_be_turned_is_left_out_and_said(
    error: Exception, images: FolderImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = batches.to_rgb

    def fails(image: Image.Image) -> Image.Image:
        if image.size == (7, 7):
            raise error
        return turned(image)

    bad = images._paths[5]
    Image.new("RGB", (7, 7)).save(bad)
    monkeypatch.setattr(batches, "to_rgb", fails)
    data = Batches(images, RECIPE, 32, batch=4)
    assert len(list(data.ahead(range(6)))) == 6
    assert list(data.left_out) == [5]
    assert data.left_out[5].startswith("bee/1.png: ")


@pytest.mark.parametrize("error", [MemoryError("out of memory"), ImportError("no decoder")])
def test_what_is_not_the_images_fault_ends_the_run(
    error: Exception, images: FolderImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Image.Image) -> Image.Image:
        raise error

    monkeypatch.setattr(batches, "to_rgb", fails)
    with pytest.raises(type(error)):
        next(Batches(images, RECIPE, 32, batch=4).ahead(range(6)))


def test_no_image_at_all_ends_the_run(images: FolderImages) -> None:
    for path in images._paths:
        path.write_bytes(b"no picture")
    with pytest.raises(InputError, match="no image of"):
        next(Batches(images, RECIPE, 32, batch=4).ahead(range(6)))


def test_batches_are_made_ahead_in_this_process(images: FolderImages) -> None:
    made = []

    class Watched(Batches):
        def make(self, step: int) -> Batch:
            made.append((step, os.getpid(), threading.current_thread() is threading.main_thread()))
            return super().make(step)

    batches_of = Watched(images, RECIPE, 32, batch=4).ahead(range(100))
    next(batches_of)
    for _ in range(100):
        if len(made) >= 3:
            break
        time.sleep(0.05)
    assert made == [(step, os.getpid(), False) for step in range(3)]
    batches_of.close()  # type: ignore[attr-defined]
    assert threading.active_count() == 1 or not any(
        thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate()
    )


def test_training_needs_class_folders(make_images: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="no class folders"):
        open_source(make_images("a.png"), "train")
    with pytest.raises(InputError, match="one class folder"):
        open_source(make_images("a/a.png", root="one"), "train")
