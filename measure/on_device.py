"""What a bundle's files answer on this machine to images, beside torch's answers in the bundle.

Images pass once, in shards: each is prepared, given to every file, and what the figures need of the
answers is kept on disk. So memory does not grow with their number by more than some bytes each, and
a run that was killed goes on behind its last shard.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt.bundle.reader import OpenBundle
from cmt.bundle.torch_answers import KEPT, Answers, best, class_of, read_answers
from cmt.calib_data.image_range import ImageRange
from cmt.calib_data.readers import read_lists
from cmt.calib_data.reading import ImageList, ReadImages, image_list
from cmt.calib_data.sources import (
    FolderImages,
    ImageSource,
    KeyedImages,
    bundled,
    idx_test_images,
)
from cmt.errors import GateError, InputError
from cmt.files import cache_folder, is_own_folder, write_whole
from cmt.measure.shards import outputs_of
from cmt.printing import printable
from cmt.targets.base import Runner, Task
from cmt.targets.entries import Entry
from cmt.targets.machine import package_versions
from cmt.targets.registry import LOADERS, load_settings
from cmt.targets.settings import Settings, callers

SHARD = 256
"""Images held at a time: 39 MB at 224 pixels."""
BUNDLED = "bundled"
"""The name of the images that come with this program."""
UNKNOWN = -1
"""The row of an image that is not among torch's answers."""
Shard = dict[str, NDArray[Any]]
Map = Callable[[Mapping[int, NDArray[np.int64]]], Iterator[tuple[int, Shard]]]
"""Given shards by number, each the places of its images in the source, yields the number and what
`answer_images` gives of each, in any order; leaves out those that could not be answered."""


@dataclass(frozen=True)
class File:
    """A file as it is asked: on one device, with settings of its own, at one batch.

    Attributes:
        for_unknown: only its first answers, to images that torch did not answer.
    """

    artefact: Entry
    device: str | None
    own: Settings
    batch: int
    for_unknown: bool = False

    @property
    def name(self) -> str:
        """Tells it from the others of a run."""
        return file_name(self.artefact["path"], self.device, self.batch)


@dataclass(frozen=True)
class Elsewhere:
    """Machines that answer in the place of this one.

    Attributes:
        answer: gives them the shards.
        made_with: all that decides their answers beside files and images; JSON.
        reference: the FP32 file that runs on their CPU, which is one of the run's; None without.
    """

    answer: Map
    made_with: Any
    reference: File | None


def file_name(path: str, device: str | None, batch: int) -> str:
    """`File.name` of these."""
    return " ".join([path, device or "", str(batch)])


@dataclass(frozen=True)
class Seen:
    """The images of a run that could be read, in their order, and what was answered.

    Attributes:
        places: (images,) in the source.
        rows: (images,) among torch's answers, `UNKNOWN` for those that are not there.
        labels: (images,) class indices; None where the images are in no class folders.
        first: by file name, (images, k) classes, the best first; of a file `for_unknown`, one.
        beside: by file name, (images, k) its logits of torch's classes.
        answers: torch's.
        skipped: a line for each image that could not be read.
    """

    source: ImageSource
    places: NDArray[np.int64]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    first: Mapping[str, NDArray[np.int32]]
    beside: Mapping[str, NDArray[np.float32]]
    answers: Answers
    skipped: Sequence[str]


def open_images(where: str, image_range: ImageRange | None) -> ImageSource:
    """A folder of images, or of MNIST's files; those that come with this program for `BUNDLED`."""
    if where == BUNDLED:
        return bundled("validation")
    return idx_test_images(Path(where)) or FolderImages(Path(where), image_range)


def choose(source: ImageSource, count: int | None, answers: Answers) -> NDArray[np.int64]:
    """Places of `count` images in ascending order (all), those that torch answered first.

    As many of each class where it can, drawn by their sha256: `runtime/cpp/tools/accuracy.cpp`
    draws the same. A smaller count's images are among a larger one's.
    """
    if count is None or count >= len(source):
        return np.arange(len(source))
    known, labels = {digest.hex() for digest in answers.rows}, source.labels
    turns: Counter[tuple[bool, int]] = Counter()
    places = []
    for digest, place in sorted((source.digest(i), i) for i in range(len(source))):
        group = (digest not in known, labels[place] if labels is not None else 0)
        places.append((group[0], turns[group], digest, place))
        turns[group] += 1
    return np.sort([place for *_, place in sorted(places)[:count]])


def ask(
    bundle: OpenBundle,
    source: ImageSource,
    count: int | None,
    files: Sequence[File],
    threads: int,
    task: Task,
    elsewhere: Elsewhere | None = None,
) -> Seen:
    """Give `count` images of a source (all; see `choose`) to every file.

    Args:
        elsewhere: who answers; None has this process do so.

    Raises:
        InputError: a folder is no class of the bundle, or no image can be read.
        GateError: a file answers with NaN or infinity.
    """
    answers = read_answers(bundle)
    chosen = choose(source, count, answers)
    classes = None
    if source.labels is not None:
        labels = bundle.manifest["labels"]
        wanted = {source.labels[i] for i in chosen}
        classes = {i: class_of(source.class_names[i], answers, labels) for i in wanted}
    made_with = [threads, package_versions()] if elsewhere is None else elsewhere.made_with
    folder = _progress(bundle, source, chosen, files, made_with)
    answer = _here(bundle, source, files, threads, answers)
    with task(f"answers of {len(files)} files to {len(chosen)} images", len(chosen)) as advance:
        parts = dict(enumerate(np.split(chosen, range(SHARD, len(chosen), SHARD))))
        pending = {i: part for i, part in parts.items() if not _kept(folder, i).exists()}
        advance(len(chosen) - sum(map(len, pending.values())))
        for i, made in (answer if elsewhere is None else elsewhere.answer)(pending):
            write_whole(_kept(folder, i), _packed(made))
            advance(len(parts[i]))
    shards = [_read(_kept(folder, i)) or _left_out(source, part) for i, part in parts.items()]
    if all(_kept(folder, i).exists() for i in parts):
        shutil.rmtree(folder, ignore_errors=True)
    return _seen(source, answers, classes, files, shards)


def _kept(folder: Path, number: int) -> Path:
    return folder / f"{number}.npz"


def _read(path: Path) -> Shard | None:
    if not path.exists():
        return None
    with np.load(path) as kept:
        return dict(kept)


def _left_out(source: ImageSource, places: NDArray[np.int64]) -> Shard:
    """Of a shard that nobody could answer; another run asks again."""
    lines = [f"{printable(source.key(int(place)))}: nobody answered" for place in places]
    none = np.zeros(0, np.int64)
    return {"places": none, "rows": none, "skipped": np.array(lines, np.str_)}


def _here(
    bundle: OpenBundle,
    source: ImageSource,
    files: Sequence[File],
    threads: int,
    answers: Answers,
) -> Map:
    """This process answers; it loads no file where all shards are there."""

    def answer(pending: Mapping[int, NDArray[np.int64]]) -> Iterator[tuple[int, Shard]]:
        runners = load_files(bundle, files, threads) if pending else {}
        lists = (listed(bundle, source, places) for places in pending.values())
        with closing(read_lists(lists, threads)) as found:
            for (number, places), (asked, read) in zip(pending.items(), found, strict=True):
                made = answer_images(
                    bundle, places, asked["digests"], read, files, runners, answers
                )
                yield number, made

    return answer


def load_files(bundle: OpenBundle, files: Sequence[File], threads: int) -> dict[str, Runner]:
    """What runs each file, by its name."""
    return {file.name: _load(bundle, file, threads) for file in files}


def _load(bundle: OpenBundle, file: File, threads: int) -> Runner:
    settings = load_settings(file.artefact, file.own, bundle.trusted, file.device)
    path = bundle.file(file.artefact)
    return LOADERS[file.artefact["target"]](path, threads, settings, file.batch)


def _progress(
    bundle: OpenBundle,
    source: ImageSource,
    chosen: NDArray[np.int64],
    files: Sequence[File],
    made_with: Any,
) -> Path:
    """The folder of finished shards of this very run, in the user's cache."""
    identity = {
        "files": [[f.name, f.artefact["sha256"], dict(f.own)] for f in files],
        "input": bundle.manifest["input"],
        "answers": bundle.manifest.get("answers"),
        "images": [source.fingerprint(), chosen.tolist()],
        "made with": [made_with, SHARD],
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = cache_folder() / "answers" / key
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_own_folder(folder):
            return folder
        problem = "it is another user's"
    except OSError as error:
        problem = error.strerror or str(error)
    raise InputError(
        f"cannot keep answers in {folder} ({problem}): set XDG_CACHE_HOME to a folder of yours"
    )


def _packed(shard: Shard) -> bytes:
    file = BytesIO()
    np.savez(file, **shard)  # type: ignore[arg-type]
    return file.getvalue()


def listed(bundle: OpenBundle, source: KeyedImages, places: NDArray[np.int64]) -> ImageList:
    """These images of a source, prepared as the bundle says."""
    keys, digests = [source.key(i) for i in places], [source.digest(i) for i in places]
    return image_list(source.origin(), bundle.preprocessing, keys, digests)


def answer_images(
    bundle: OpenBundle,
    places: NDArray[np.int64],
    digests: Sequence[str],
    found: ReadImages,
    files: Sequence[File],
    runners: Mapping[str, Runner],
    answers: Answers,
) -> Shard:
    """What a shard's images are and what every file answers to them."""
    known = [answers.rows.get(bytes.fromhex(digests[place]), UNKNOWN) for place in found["read"]]
    rows = np.array(known, np.int64)
    shard: Shard = {
        "places": places[found["read"]],
        "rows": rows,
        "skipped": np.array(found["skipped"], np.str_),
    }
    for i, file in enumerate(files) if len(rows) else ():
        if file.for_unknown and UNKNOWN not in rows:
            shard[f"first{i}"] = np.full((len(rows), 1), UNKNOWN, np.int32)
            continue
        logits = _logits(bundle, file, runners[file.name], found["pixels"], answers)
        shard[f"first{i}"] = best(logits, 1 if file.for_unknown else KEPT)
        if len(answers.classes):  # of unknown images, what comes here says nothing
            shard[f"beside{i}"] = np.take_along_axis(logits, answers.classes[rows], 1)
    return shard


def _logits(
    bundle: OpenBundle, file: File, runner: Runner, pixels: NDArray[np.uint8], answers: Answers
) -> NDArray[np.float32]:
    at_once = callers(file.own)
    (logits, *_) = outputs_of(runner, bundle.preprocessing, pixels, file.batch, at_once)
    if not np.isfinite(logits).all():
        raise GateError(f"{file.artefact['path']} answers with NaN or infinity")
    labels = len(bundle.manifest["labels"])
    fits = logits.ndim == 2 and answers.classes.max(initial=0) < logits.shape[1]
    if not fits or labels not in (0, logits.shape[1]):
        raise InputError(
            f"{file.artefact['path']} does not answer for the bundle's classes: export it again"
        )
    return logits


def _seen(
    source: ImageSource,
    answers: Answers,
    classes: Mapping[int, int] | None,
    files: Sequence[File],
    shards: Sequence[Shard],
) -> Seen:
    skipped = [str(line) for shard in shards for line in shard["skipped"]]
    full = [shard for shard in shards if len(shard["places"])]
    if not full:
        raise InputError(f"no image of {source.description} can be decoded: {skipped[0]}")

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([shard[name] for shard in full])

    places, labels = joined("places"), None
    if source.labels is not None and classes is not None:
        labels = np.array([classes[source.labels[place]] for place in places], np.int64)
    first = {file.name: joined(f"first{i}") for i, file in enumerate(files)}
    beside = {f.name: joined(f"beside{i}") for i, f in enumerate(files) if f"beside{i}" in full[0]}
    return Seen(source, places, joined("rows"), labels, first, beside, answers, skipped)
