"""Accuracy while training and after it, on validation images."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cmt.calib_data.prepared import open_prepared, prepare
from cmt.calib_data.preprocessing import Preprocessing
from cmt.calib_data.sources import ImageSource
from cmt.network import CMT
from cmt.training.starting import channels_last

UNDERWAY_IMAGES = 1000
"""Looked at while training, evenly of all classes; 95 % of their top-1 lie within 3 points."""
_SHARE = 0.1
"""Of a run's time, at most, that looking at them takes."""
_LONGEST_SECONDS = 1800.0
"""Between two looks, where an epoch takes longer."""
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in percent, of so many images; lines for people on those that could not be read."""

    top1: float
    images: int
    remarks: list[str]


@torch.no_grad()
def evaluate(
    model: CMT,
    source: ImageSource,
    preprocessing: Preprocessing,
    batch: int = 32,
    count: int | None = None,
    advance: Advance = lambda _: None,
) -> Accuracy:
    """How often the network is right on `count` images (all).

    Args:
        advance: told of images that are done, each counted twice: prepared, and answered.
    """
    channels_last(model).eval()
    device = next(model.parameters()).device
    with tempfile.TemporaryDirectory() as folder:
        prepare(source, preprocessing, Path(folder), count=count, seed=0, advance=advance)
        images = open_prepared(Path(folder), preprocessing)
        answers = []
        for x in map(torch.from_numpy, images.batches(batch)):
            x = x.to(device, memory_format=torch.channels_last)
            answers.append(model(x).argmax(1).cpu().numpy())
            advance(len(x))
    right = np.concatenate(answers)[: len(images)] == images.labels
    return Accuracy(100 * float(right.mean()), len(images), images.remarks("validation"))


class Validation:
    """Looks at a network while it learns: after each epoch, as far as there is time for it.

    Args:
        resize_ratio: shorter side of images, resized, to the input size.
    """

    def __init__(self, source: ImageSource, resize_ratio: float) -> None:
        self.source, self._ratio = source, resize_ratio
        self._started = self._last = time.monotonic()
        self._spent = 0.0

    def is_due(self, epoch_ended: bool) -> bool:
        """Whether to look now."""
        now = time.monotonic()
        asked = epoch_ended or now - self._last > _LONGEST_SECONDS
        return asked and self._spent <= _SHARE * (now - self._started)

    @property
    def count(self) -> int:
        """Images that are looked at."""
        return min(UNDERWAY_IMAGES, len(self.source))

    def look(self, model: CMT, advance: Advance = lambda _: None) -> Accuracy:
        """The accuracy of the network at its own size."""
        begin = time.monotonic()
        box = tuple(round(side * self._ratio) for side in model.img_size)
        preprocessing = Preprocessing(model.img_size, (box[0], box[1]))
        accuracy = evaluate(model, self.source, preprocessing, count=self.count, advance=advance)
        self._last = time.monotonic()
        self._spent += self._last - begin
        return accuracy
