"""Images that a run prepares: which of a source, how, and the stage that does it once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from calib_data.prepared import PreparedImages, open_prepared, prepare
from calib_data.preprocessing import Preprocessing
from calib_data.sources import ImageSource, choose
from export.progress import ProgressBars
from export.stages import Stages


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
