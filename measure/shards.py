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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from cmt.bundle.torch_answers import best
from cmt.calib_data.preprocessing import Preprocessing
from cmt.calib_data.reading import ImageList, read_images, whole
from cmt.targets.base import Runner
from cmt.targets.registry import LOADERS
from cmt.targets.settings import Settings

SHARD = 1024
"""Images in a shard, at most: what a run that is killed loses."""
SHARD_BYTES = 2**28
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
        sha256: of the file, and of what lies beside it and belongs to it, by file name.
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


Load = Callable[[AskedFile], Runner]
Answered = dict[str, Shard]
"""By file name."""
Map = Callable[[Sequence[ShardTask]], Iterator[tuple[int, Answered]]]
"""Answers every task; yields the place of each among the tasks with its answers, in any order."""
