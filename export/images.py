"""The sets of images that a run reads: which of a source, how, and the stage that prepares them.

Calibration images set ranges; held-out ones are of the same source and set none, so that choices
can be made on them. Validation images only confirm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cmt.calib_data.prepared import PreparedImages, open_prepared, prepare
from cmt.calib_data.preprocessing import Preprocessing
from cmt.calib_data.reading import ImageList, image_list
from cmt.calib_data.sources import ImageSource, Subset, choose, hold_out
from cmt.export.inputs import Inputs
from cmt.export.options import ExportOptions
from cmt.export.stages import Stages
from cmt.measure.progress import ProgressBars

VALIDATION, CALIBRATION, HELD_OUT, FINE_TUNING = (
    "validation",
    "calibration",
    "held-out",
    "fine-tuning",
)
MOST_HELD_OUT = 512
"""Calibration images that set no range, at most."""
LEAST_HELD_OUT = 64
"""Of fewer images, all set ranges, and choices are made on the same ones."""


@dataclass(frozen=True)
class Selection:
    """`count` images of a source (all), chosen by `seed`.

    Attributes:
        label_map: the source's class indices to the network's.
    """

    source: ImageSource
    preprocessing: Preprocessing
    seed: int
    count: int | None = None
    label_map: dict[int, int] | None = None

    @cached_property
    def key(self) -> dict[str, Any]:
        """All that decides the prepared images, the images' bytes included."""
        source = self.source
        chosen = choose(source, self.count, self.seed)
        return {
            "source": source.description,
            "available": len(source),
            "images": [[source.key(i), source.digest(i)] for i in chosen],
            "classes": None if source.labels is None else [source.labels[i] for i in chosen],
            "labels": self.label_map,
            "preprocessing": asdict(self.preprocessing),
        }

    @property
    def listed(self) -> ImageList:
        """The images as any process can be asked for them."""
        keys, digests = map(list, zip(*self.key["images"], strict=True))
        return image_list(self.source.origin(), self.preprocessing, keys, digests)

    def prepare(self, name: str, stages: Stages, progress: ProgressBars) -> PreparedImages:
        """The images as the network takes them, made by the stage `images/<name>`."""

        def make(folder: Path) -> None:
            total = min(len(self.source), self.count or len(self.source))
            with progress.task(f"preparing {name} images", total) as advance:
                prepare(
                    self.source,
                    self.preprocessing,
                    folder,
                    count=self.count,
                    seed=self.seed,
                    label_map=self.label_map,
                    advance=advance,
                )

        return open_prepared(stages.run(f"images/{name}", self.key, make), self.preprocessing)


def select(inputs: Inputs, options: ExportOptions, most: int) -> dict[str, Selection]:
    """The sets of a run by name; calibration's source is divided where there are enough images.

    Args:
        most: images that are held out, at most.
    """
    preprocessing, seed = replace(inputs.preprocessing, in_graph=False), options.seed
    found = {
        VALIDATION: Selection(
            inputs.validation, preprocessing, seed, inputs.validation_count, inputs.label_map
        )
    }
    source, count = inputs.calibration, options.calib_count
    if source is not None and len(source) < LEAST_HELD_OUT:
        whole = Selection(Subset(source, choose(source, count, seed)), preprocessing, seed)
        found |= {CALIBRATION: whole, HELD_OUT: whole}
    elif source is not None:
        chosen, held = hold_out(source, count, most, seed)
        found[CALIBRATION] = Selection(Subset(source, chosen), preprocessing, seed)
        found[HELD_OUT] = Selection(Subset(source, held, "held out"), preprocessing, seed)
    if inputs.tuning is not None:
        found[FINE_TUNING] = Selection(inputs.tuning, preprocessing, seed)
    return found


@dataclass(frozen=True)
class Images:
    """The prepared sets of a run, by name; only validation's is always there."""

    sets: Mapping[str, PreparedImages]

    @property
    def validation(self) -> PreparedImages:
        return self.sets[VALIDATION]

    @property
    def calibration(self) -> PreparedImages | None:
        return self.sets.get(CALIBRATION)

    @property
    def held_out(self) -> PreparedImages:
        """What choices are made on; only where there is `calibration`."""
        return self.sets[HELD_OUT]

    @property
    def setting_ranges(self) -> PreparedImages:
        """The calibration images, of a run that has some."""
        return self.sets[CALIBRATION]

    @property
    def held_out_count(self) -> int:
        """How many set no range; 0 where choices are made on those that do."""
        if self.calibration is None or self.held_out.keys == self.calibration.keys:
            return 0
        return len(self.held_out)

    def warnings(self) -> list[str]:
        """What could not be read, and what is in two sets that should have nothing in common."""
        lines = [line for name, images in self.sets.items() for line in images.remarks(name)]
        judging = set(self.validation.digests)
        for name, images in self.sets.items():
            shared = len(judging & set(images.digests)) if name != VALIDATION else 0
            if shared:
                lines.append(
                    f"{shared} of the {name} images are validation images as well: the accuracy "
                    "of what is made or chosen on them is flattered"
                )
        return lines
