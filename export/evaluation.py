"""What files answer to the validation images: all files in one pass over the images, in shards.

Each file's answers to each shard are a stage, so that a run that is killed goes on behind its last
shard, and a file that the gate tries is asked alone.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt.bundle.golden import IMAGES
from cmt.calib_data.prepared import PreparedImages, spread
from cmt.calib_data.readers import read_lists
from cmt.calib_data.reading import ImageList, PixelsOnDemand, whole
from cmt.export.answers import (
    PARITY_IMAGES,
    REFERENCE_BATCH,
    Asked,
    Outputs,
    Places,
    answers,
    asked_reference,
    hashed,
    way_of,
)
from cmt.export.context import Context
from cmt.export.graphs import SUFFIX
from cmt.export.images import VALIDATION
from cmt.measure.shards import (
    SHARD,
    Advance,
    Answered,
    AskedFile,
    FileAnswers,
    Map,
    Shard,
    ShardTask,
    answer_shard,
    load_asked,
    merge,
    shard_size,
)
from cmt.targets.base import Runner


def evaluate(context: Context, files: Sequence[Asked]) -> dict[str, FileAnswers]:
    """What files answer to the validation images, by name; of feature maps, to the first few.

    Raises:
        MachineError: an image has changed since the start.
    """
    kept = kept_places(context)
    shards = [_shard(context, number, r, kept, files) for number, r in enumerate(_ranges(context))]
    missing = [(shard, asked) for shard in shards if (asked := shard.unanswered(context))]
    known = {one.file["name"]: hashed(one.file) for one in files if missing}
    tasks = [shard.task([known[one.file["name"]] for one in asked]) for shard, asked in missing]
    names = [asked.file["name"].split(SUFFIX)[0] for asked in files]
    who = names[0] if len(names) == 1 else f"{len(names)} files"
    count = sum(len(shard.places) for shard in shards)
    steps = count * len(files)
    with context.progress.task(f"running {who} on {count} {VALIDATION} images", steps) as advance:
        advance(steps - sum(len(t["images"]["keys"]) * len(t["files"]) for t in tasks))
        answer = context.shards or _here(context, [shard.places for shard, _ in missing], advance)
        with closing(answer(tasks)) as answered:
            for place, by_file in answered:
                shard, asked = missing[place]
                for one in asked:
                    shard.store(context, one, by_file[one.file["name"]])
                if context.shards is not None:
                    advance(len(shard.places) * len(asked))
    return {
        asked.file["name"]: merge([shard.answers(context, asked) for shard in shards], kept)
        for asked in files
    }


def reference_answers(context: Context, network: Path, on: str = VALIDATION) -> Outputs:
    """What the torch network answers on `parity_places`, or on all of a set that is small."""
    is_large = on == VALIDATION
    places = parity_places(context) if is_large else np.arange(len(context.images.sets[on]))
    return answers(context, asked_reference(context, network), places, on)


def evaluated_count(context: Context) -> int:
    """How many validation images files are asked for."""
    count = len(context.images.validation)
    return min(count, PARITY_IMAGES) if context.options.output == "features" else count


def parity_places(context: Context) -> Places:
    """Of the images on which graphs and files are compared with torch."""
    return spread(evaluated_count(context), PARITY_IMAGES)


def golden_places(images: PreparedImages) -> Places:
    """Of the images that a bundle has golden answers to, which are fewer than parity's."""
    return np.arange(min(IMAGES, len(images)))


def kept_places(context: Context) -> Places:
    """Of the images of which every output is kept."""
    return np.union1d(parity_places(context), golden_places(context.images.validation))


def _ranges(context: Context) -> list[range]:
    """The places of each shard's images."""
    count, (height, width) = evaluated_count(context), context.inputs.preprocessing.size
    batch = math.lcm(REFERENCE_BATCH, context.options.batch)
    size = shard_size(height * width * 3, batch if batch <= SHARD else context.options.batch)
    return [range(begin, min(begin + size, count)) for begin in range(0, count, size)]


@dataclass(frozen=True)
class _Shard:
    """One shard of the images, and the stages of all files' answers to it.

    Attributes:
        whole: places in the shard of which every output is kept.
    """

    number: int
    places: range
    images: ImageList
    whole: list[int]
    files: Sequence[Asked]

    def task(self, files: list[AskedFile]) -> ShardTask:
        """To ask these files."""
        return {"images": self.images, "files": files, "whole": self.whole}

    def unanswered(self, context: Context) -> list[Asked]:
        """The files without finished answers."""
        has = context.stages.has
        return [one for one in self.files if not has(*self._stage(context, one), [one.stage])]

    def store(self, context: Context, asked: Asked, answers: Shard | None) -> Path:
        """The folder of a file's answers, which are there already where none are given."""

        def make(folder: Path) -> None:
            assert answers is not None
            np.savez(folder / "answers.npz", **answers)  # type: ignore[arg-type]

        return context.stages.run(*self._stage(context, asked), make, [asked.stage])

    def answers(self, context: Context, asked: Asked) -> Shard:
        """What a file answers."""
        with np.load(self.store(context, asked, None) / "answers.npz") as arrays:
            return dict(arrays)

    def _stage(self, context: Context, asked: Asked) -> tuple[str, dict[str, Any]]:
        """Name and inputs."""
        way = {**way_of(asked.file), "device": context.options.device}
        name = f"answers/{asked.file['name'].replace('/', '-')}-{self.number:04d}"
        return name, {**way, "images": self.images, "whole": self.whole}


def _shard(
    context: Context, number: int, places: range, kept: Places, files: Sequence[Asked]
) -> _Shard:
    here = kept[(kept >= places.start) & (kept < places.stop)] - places.start
    images = context.images.validation.listed(places.start, places.stop)
    return _Shard(number, places, images, here.tolist(), files)


def _here(context: Context, places: Sequence[range], advance: Advance) -> Map:
    """Answers tasks one after the other in this process, while others read their images.

    Args:
        places: of each task's images, whose pixels may be at hand.
    """
    pixels, runners = context.images.validation.pixels, dict[str, Runner]()

    def load(file: AskedFile) -> Runner:
        if file["name"] not in runners:
            runners[file["name"]] = load_asked(file)
        return runners[file["name"]]

    def read(tasks: Sequence[ShardTask]) -> Generator[NDArray[np.uint8], None, None]:
        if not isinstance(pixels, PixelsOnDemand):
            yield from (pixels[np.arange(r.start, r.stop)] for r in places)
            return
        lists = [task["images"] for task in tasks]
        with closing(read_lists(lists, context.threads)) as found:
            yield from (whole(read, len(images["keys"])) for images, read in found)

    def answer(tasks: Sequence[ShardTask]) -> Generator[tuple[int, Answered], None, None]:
        with closing(read(tasks)) as found:
            for place, (task, of_task) in enumerate(zip(tasks, found, strict=True)):
                yield place, answer_shard(task, of_task, load, advance)

    return answer
