"""What files answer to a shard of the images: the task that evaluation is divided into.

    answer_shard(task: ShardTask, pixels=None, load=load_asked) -> dict[file name, Shard]

is a module-level function of JSON-like arguments, for whatever executor: a `ShardTask` names its
images by relative path and sha256 (`calib_data.reading.ImageList`) and its files by path and
sha256, and what comes back are small arrays (`Shard`): of each image the best classes and their
logits, and of the few in `whole` every output. A shard's answers hang on its task alone, so shards
may be made in any order, by any process, and more than once; `merge` puts them together in the
order of the images. `export.evaluation` stores each under a stage, keyed by its task's content.
`Map` is what an executor has to be: it is given tasks and yields (place of the task, answers) as
they come.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from cmt.bundle.torch_answers import best
from cmt.calib_data.preprocessing import Preprocessing
from cmt.calib_data.reading import ImageList, read_images, whole
from cmt.targets.base import Array, Runner, run_all
from cmt.targets.registry import LOADERS
from cmt.targets.settings import Settings

SHARD = 1024
"""Images in a shard, at most: what a run that is killed loses."""
SHARD_BYTES = 2**27
"""Of pixels in a shard, at most."""
Shard = dict[str, NDArray[Any]]
"""What one file answers to a shard's images:

first: (images, k) int32 classes, the best first; k is `bundle.torch_answers.KEPT` at most.
logits: (images, k) float32, of these classes.
finite: (images,) bool, whether all outputs are numbers.
classes: () int64, of how many classes; 0 where the network has no logits.
whole0, whole1, ...: (images in the task's `whole`, ...) float32, every output of these.
"""


class AskedFile(TypedDict):
    """A file as it is asked; JSON.

    Attributes:
        name: tells it from the others of a run.
        runtime: one of `targets.registry.LOADERS`.
        sha256: of the file and of what is beside it, by file name.
        settings: what it is loaded with; None takes the runtime's own.
        callers: how many batches it is given at a time.
        in_graph: see `Preprocessing`.
    """

    name: str
    runtime: str
    path: str
    sha256: dict[str, str]
    settings: Settings | None
    threads: int
    batch: int
    callers: int
    in_graph: bool


class ShardTask(TypedDict):
    """What `answer_shard` is asked; JSON.

    Attributes:
        images: that can all be read.
        whole: places in the shard of which every output is kept, ascending.
    """

    images: ImageList
    files: list[AskedFile]
    whole: list[int]


Outputs = list[Array]
"""One array (images, ...) for each output of the network."""
Advance = Callable[[int], None]
Load = Callable[[AskedFile], Runner]
Answered = dict[str, Shard]
"""By file name."""
Map = Callable[[Sequence[ShardTask]], Generator[tuple[int, Answered], None, None]]
"""Answers every task; yields the place of each among the tasks with its answers, in any order."""


def shard_size(image_bytes: int, batch: int) -> int:
    """How many images a shard has: whole batches, so that each image is asked in the place that it
    would have in one run over all of them.

    Args:
        image_bytes: of an image's pixels.
        batch: of all files: their least common multiple.
    """
    most = max(1, min(SHARD, SHARD_BYTES // image_bytes))
    return max(1, most // batch) * batch


def answer_shard(
    task: ShardTask,
    pixels: NDArray[np.uint8] | None = None,
    load: Load | None = None,
    advance: Advance = lambda _: None,
) -> Answered:
    """What every file of a task answers to its images.

    Args:
        pixels: (N, H, W, 3) of the images, where they are at hand; read otherwise.
        load: gives a file's runner, where one is at hand; loaded otherwise.
        advance: told of images that are done, once for each file.

    Raises:
        MachineError: an image is not what is listed, or can no longer be read.
    """
    images = task["images"]
    if pixels is None:
        pixels = whole(read_images(images), len(images["keys"]))
    preprocessing = Preprocessing.from_description(images["preprocessing"])
    answered = {}
    for file in task["files"]:
        fed = replace(preprocessing, in_graph=file["in_graph"])
        runner = (load or load_asked)(file)
        outputs = outputs_of(runner, fed, pixels, file["batch"], file["callers"], advance)
        answered[file["name"]] = reduced(outputs, task["whole"])
    return answered


def load_asked(file: AskedFile) -> Runner:
    """A file as it is asked, loaded."""
    loader = LOADERS[file["runtime"]]
    return loader(Path(file["path"]), file["threads"], file["settings"], file["batch"])


def outputs_of(
    runner: Runner,
    preprocessing: Preprocessing,
    pixels: NDArray[np.uint8],
    batch: int,
    callers: int = 1,
    advance: Advance = lambda _: None,
) -> Outputs:
    """All outputs of a file for images, the last batch filled up from the first ones.

    Args:
        callers: batches that it is given at a time.
        advance: told of images that are done.
    """
    total = len(pixels)

    def batches() -> Iterator[NDArray[Any]]:
        for begin in range(0, total, batch):
            yield preprocessing.feed(pixels[np.arange(begin, begin + batch) % total])

    return run_all(runner, batches(), total, advance, callers)


def reduced(outputs: Outputs, places: Sequence[int]) -> Shard:
    """What is kept of a file's outputs: all figures of a report hang on this alone.

    Args:
        places: of the images of which all is kept.
    """
    count = len(outputs[0])
    is_logits = len(outputs) == 1 and outputs[0].ndim == 2
    logits = outputs[0] if is_logits else np.zeros((count, 0), np.float32)
    first, finite = best(logits), np.ones(count, bool)
    for array in outputs:
        finite &= np.isfinite(array).reshape(count, -1).all(1)
    return {
        "first": first,
        "logits": np.take_along_axis(logits, first, 1),
        "finite": finite,
        "classes": np.array(logits.shape[1]),
        **{f"whole{i}": array[np.array(places, int)] for i, array in enumerate(outputs)},
    }


@dataclass(frozen=True)
class FileAnswers:
    """What a file answers to a set of images.

    Attributes:
        first: (images, k) int32 classes, the best first; k is 0 where there are no logits.
        logits: (images, k) float32, of these classes.
        finite: (images,) whether all outputs are numbers.
        classes: of how many classes.
        places: (kept,) ascending, of the images of which every output is kept.
        whole: one array (kept, ...) for each output.
    """

    first: NDArray[np.int32]
    logits: NDArray[np.float32]
    finite: NDArray[np.bool_]
    classes: int
    places: NDArray[np.int64]
    whole: Outputs

    def at(self, places: NDArray[np.int64]) -> Outputs:
        """Every output for some of the images of which all is kept."""
        rows = np.searchsorted(self.places, places)
        if not np.array_equal(self.places[rows], places):
            raise ValueError("not all outputs of these images are kept")
        return [array[rows] for array in self.whole]


def merge(shards: Sequence[Shard], places: NDArray[np.int64]) -> FileAnswers:
    """The answers of one file to all images.

    Args:
        shards: in the order of the images.
        places: of the images of which all is kept, in the whole set.
    """

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([shard[name] for shard in shards])

    outputs = [name for name in shards[0] if name.startswith("whole")]
    return FileAnswers(
        joined("first"),
        joined("logits"),
        joined("finite"),
        int(shards[0]["classes"]),
        places,
        [joined(name) for name in outputs],
    )
