"""Training images as augmented batches, prepared while the network learns from the last one."""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image, Resampling
from torch import Tensor

from cmt.calib_data.image_range import OUTSIDE, ImageRange
from cmt.calib_data.preprocessing import Preprocessing, to_rgb
from cmt.calib_data.sources import FolderImages, IdxImages, ImageSource, UnreadableImageError
from cmt.errors import InputError
from cmt.training.schedule import Recipe

_AHEAD = 2
"""Batches that are prepared before they are asked for."""
Batch = tuple[Tensor, Tensor]
"""(B, 3, S, S) float32, normalised, and (B,) int64 classes."""


def open_source(path: Path, split: str, image_range: ImageRange | None = None) -> ImageSource:
    """An image folder, or Fashion-MNIST's IDX files for split `train` or `t10k`."""
    images = path / f"{split}-images-idx3-ubyte.gz"
    if images.is_file():
        return IdxImages(images, path / f"{split}-labels-idx1-ubyte.gz", f"Fashion-MNIST {split}")
    source = FolderImages(path, image_range)
    if source.labels is None:
        raise InputError(f"{path} has no class folders: expected class/name.jpg")
    if len(source.class_names) < 2:
        raise InputError(f"{path} has one class folder: give images of two classes or more")
    return source


def augment(image: Image, size: int, rng: np.random.Generator, recipe: Recipe) -> NDArray[np.uint8]:
    """Random resized crop, flip and erasing of an RGB image -> (size, size, 3) uint8."""
    area = image.width * image.height * rng.uniform(recipe.min_crop, 1)
    aspect = math.exp(rng.uniform(math.log(4 / 5), math.log(5 / 4)))
    width = min(math.sqrt(area * aspect), image.width)
    height = min(math.sqrt(area / aspect), image.height)
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    box = (left, top, left + width, top + height)
    pixels = np.array(image.resize((size, size), Resampling.BICUBIC, box=box))
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1].copy()
    if rng.random() < recipe.erasing:
        tall, wide = rng.integers(size // 8, size // 2, 2)
        y, x = rng.integers(0, size - tall), rng.integers(0, size - wide)
        pixels[y : y + tall, x : x + wide] = rng.integers(0, 256, (1, 1, 3))
    return pixels


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, 1 << 40, epoch)).permutation(count)


class Batches:
    """Augmented batches by step number; the same step always gives the same batch.

    Args:
        start: images that the run has seen before this stage.
        left_out: is given a line for each image that cannot be used, by its index.
        outside: is given, for each image that was read by the source's `image_range`, how many of
            its values lie outside.
    """

    def __init__(
        self,
        source: ImageSource,
        recipe: Recipe,
        size: int,
        batch: int,
        start: int = 0,
        left_out: dict[int, str] | None = None,
        outside: dict[int, int] | None = None,
    ) -> None:
        self.source, self.recipe, self.size, self.batch = source, recipe, size, batch
        self.start = start
        self.left_out = {} if left_out is None else left_out
        self.outside = {} if outside is None else outside
        self.prepare = Preprocessing((size, size), (size, size))

    def make(self, step: int) -> Batch:
        """The batch of a step of this stage."""
        begin = self.start + step * self.batch
        rng = np.random.default_rng((self.recipe.seed, begin))
        drawn = [self._draw(begin + i) for i in range(self.batch)]
        pixels = np.stack([augment(image, self.size, rng, self.recipe) for image, _ in drawn])
        labels = torch.tensor([label for _, label in drawn])
        return torch.from_numpy(self.prepare.normalise(pixels)), labels

    def ahead(self, steps: range) -> Iterator[Batch]:
        """The batches of these steps, made by a thread in time.

        Not by a process: there is none to die alone, and nothing to send through shared memory,
        of which containers have little. Decoding and resizing leave Python to other threads.
        """
        with ThreadPoolExecutor(1) as worker:
            waiting: deque[Future[Batch]] = deque()
            try:
                for step in steps:
                    waiting.append(worker.submit(self.make, step))
                    if len(waiting) > _AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                worker.shutdown(cancel_futures=True)

    def _draw(self, position: int) -> tuple[Image, int]:
        """An image and its class; the next one in place of one that cannot be used."""
        count = len(self.source)
        epoch, place = divmod(position, count)
        start = int(_epoch_order(self.recipe.seed, epoch, count)[place])
        assert self.source.labels is not None
        for index in (i % count for i in range(start, start + count)):
            image = None if index in self.left_out else self._load(index)
            if image is not None:
                return image, self.source.labels[index]
        raise InputError(f"no image of {self.source.description} can be decoded")

    def _load(self, index: int) -> Image | None:
        try:
            image = self.source.load(index)
            if OUTSIDE in image.info:
                self.outside[index] = image.info[OUTSIDE]
            return to_rgb(image)
        except (MemoryError, ImportError):  # no reason to leave an image out
            raise
        except UnreadableImageError as error:
            self.left_out[index] = str(error)
        except Exception as error:  # damaged EXIF data raises what it likes
            self.left_out[index] = f"{self.source.key(index)}: {error}"
        return None
