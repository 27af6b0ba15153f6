"""What a training run does, in which order and at which learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cmt.errors import InputError
from cmt.variants import parse_size

Schedule = tuple[tuple[int, int, int], ...]
"""(input size, images, batch size) of each stage, in order."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome; stored with the run and with the weights."""

    variant: str
    schedule: Schedule
    learning_rate: float
    """Peak, for a batch of 64; scaled linearly with the batch size."""
    resize_ratio: float
    """Evaluation: shorter side resized to this times the input size."""
    min_crop: float = 0.6
    """Smallest share of an image that a random crop keeps."""
    freeze: int = 0
    """The stem and this many stages keep their weights and statistics (0: everything learns)."""
    bf16: bool = False
    """Products in bfloat16, weights and sums in float32; faster where the CPU has it."""
    erasing: float = 0.1
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    ema_horizon: int = 8_000
    """Images after which a weight's share in the average has fallen to 1/e."""
    warm_up: float = 0.03
    seed: int = 0

    @property
    def total_pixels(self) -> int:
        return sum(images * size**2 for size, images, _ in self.schedule)

    def share(self, stage: int, images: int) -> float:
        """How much of the run, counted in pixels, lies before image `images` of a stage."""
        before = sum(n * size**2 for size, n, _ in self.schedule[:stage])
        return (before + images * self.schedule[stage][0] ** 2) / self.total_pixels


def learning_rate(recipe: Recipe, share: float, batch: int) -> float:
    """Linear warm-up, then a cosine to zero, over the share of all pixels seen."""
    peak = recipe.learning_rate * batch / 64
    if share < recipe.warm_up:
        return peak * (share + 1e-6) / recipe.warm_up
    progress = (share - recipe.warm_up) / (1 - recipe.warm_up)
    return peak * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))


def parse_schedule(text: str) -> Schedule:
    """`size:images:batch,...` -> tuples."""
    try:
        rows = [tuple(int(part) for part in row.split(":")) for row in text.split(",")]
        schedule = tuple((size, images, batch) for size, images, batch in rows)
    except ValueError as error:
        raise InputError(f"schedule '{text}' is not size:images:batch,...") from error
    for size, images, batch in schedule:
        parse_size(size)
        if not 0 < batch <= images:
            raise InputError(f"schedule '{text}': {images} images make no batch of {batch}")
    return schedule
