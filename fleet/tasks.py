"""What a worker does: `perform` takes JSON and gives JSON, so that no pickle hangs on a version.

A reply has what the task's function gives, or `wanted`: the worker lacks files of the bundle;
`missing`: these images, in the `place` where it looks; `refused`: the kind of our error and its
message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np

import cmt
from cmt import strict_json
from cmt.bundle.golden import verify
from cmt.bundle.torch_answers import read_answers
from cmt.calib_data.reading import read_images
from cmt.errors import GateError, InputError, MachineError
from cmt.files import cache_folder
from cmt.fleet.cluster import TIMING
from cmt.fleet.copies import IncompleteError, open_copy
from cmt.fleet.listed import Listed, missing, open_listed, place_of
from cmt.fleet.tags import machine_name, tags_of
from cmt.measure.bench import Sweep, asked_files, measure
from cmt.measure.device_rows import reference_of
from cmt.measure.on_device import File, answer_images, listed, load_files
from cmt.measure.progress import ProgressBars
from cmt.measure.rebuild import build_for_here
from cmt.measure.tune import tuned_for_here
from cmt.targets.machine import describe, usable_cores
from cmt.targets.registry import TARGETS, missing_runtime, not_runnable

_SILENT = ProgressBars(show=False).task
LOCK_SECONDS = 3600.0


def perform(task: str, request: str) -> str:
    """Run one of `WORK` on a request, an object of its arguments; returns its reply."""
    try:
        reply = WORK[task](**strict_json.parse(request))
    except IncompleteError as error:
        reply = {"wanted": str(error)}
    except (InputError, GateError, MachineError) as error:
        reply = {"refused": [type(error).__name__, str(error)]}
    return strict_json.dump(reply)


def introduce(dask_worker: Any = None) -> str:
    """Who a worker is; it gives itself as `dask_worker` to what it is asked to run."""
    environment = describe(seed=0)
    machine = machine_name()
    resources = {} if dask_worker is None else dask_worker.state.total_resources
    return strict_json.dump(
        {
            "version": cmt.__version__,
            "machine": machine,
            "tags": tags_of(environment, machine),
            "not_run": {name: missing_runtime(name) for name in TARGETS},
            "timing": resources.get(TIMING, 0) == 1,
            "environment": environment,
        }
    )


@contextmanager
def _machine(alone: bool) -> Iterator[None]:
    """Nobody of this user's other workers here times anything meanwhile; `alone`: or runs."""
    from filelock import ReadWriteLock

    place = cache_folder() / "fleet" / "timing.db"
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = ReadWriteLock(place, timeout=LOCK_SECONDS, is_singleton=False)
    with lock.write_lock() if alone else lock.read_lock():
        yield


def ready(bundle: str, trusted: bool, seconds: float) -> Mapping[str, Any]:
    """Verify a bundle here, engines of which are built anew where they have to be.

    Returns:
        `checks`, as `bundle.golden.Check`; `files`, which accuracy is asked of, and the number of
        the `reference` among them; `not_run`, by path the reason.
    """
    from cmt.targets.tensorrt.build import BuildSettings

    with _machine(alone=True):
        opened = open_copy(bundle, trusted)
        opened = build_for_here(opened, BuildSettings(cache=cache_folder()), _SILENT)
        checks = [asdict(check) for check in verify(opened, usable_cores())]
        files = asked_files(opened, Sweep(seconds=seconds))
    reference = reference_of(opened, files)
    if reference is not None and reference not in files:
        files.append(reference)
    reasons = {a["path"]: not_runnable(a, trusted) for a in opened.artefacts}
    return {
        "checks": checks,
        "files": [described(file) for file in files],
        "reference": None if reference is None else files.index(reference),
        "not_run": {path: reason for path, reason in reasons.items() if reason is not None},
    }


def described(file: File) -> dict[str, Any]:
    """A `File` as tasks have it."""
    return {**asdict(file), "artefact": file.artefact["path"]}


@lru_cache(maxsize=1)
def _loaded(bundle: str, trusted: bool, files: str, threads: int) -> Any:
    """What every shard of a run needs: bundle, files, what runs them, torch's answers."""
    opened = open_copy(bundle, trusted)
    entries = {artefact["path"]: artefact for artefact in opened.artefacts}
    asked = [File(**{**one, "artefact": entries[one["artefact"]]}) for one in json.loads(files)]
    return opened, asked, load_files(opened, asked, threads), read_answers(opened)


def answer(
    bundle: str,
    trusted: bool,
    files: Sequence[Mapping[str, Any]],
    share: int,
    where: str,
    images: Listed,
) -> Mapping[str, Any]:
    """`measure.on_device.answer_images` of these images, arrays as lists.

    Args:
        share: how many workers have this machine's CPUs among them.
        where: the images are the bundled ones, or in this worker's folder (`listed.open_listed`).
    """
    threads = max(1, usable_cores() // share)
    with _machine(alone=False):
        opened, asked, runners, answers = _loaded(bundle, trusted, json.dumps(files), threads)
        source = open_listed(where, [key for key, _ in images], opened.preprocessing.image_range)
        if absent := missing(source, images):
            return {"missing": absent, "place": place_of(where)}
        places = np.arange(len(images))
        found = read_images(listed(opened, source, places))
        digests = [sha256 for _, sha256 in images]
        shard = answer_images(opened, places, digests, found, asked, runners, answers)
    return {name: array.tolist() for name, array in shard.items()}


def timed(
    bundle: str, trusted: bool, seconds: float, tune: bool, machine: str, command: str
) -> Mapping[str, Any]:
    """The report's entry of this machine: all files and their baselines, in turn, in one task."""
    _loaded.cache_clear()  # whose threads and memory are no part of it
    with _machine(alone=True):
        opened = open_copy(bundle, trusted)
        if tune:
            opened = tuned_for_here(opened, seconds, _SILENT)
        return measure(opened, Sweep(seconds=seconds), machine, command, _SILENT)[0]


WORK: Mapping[str, Callable[..., Mapping[str, Any]]] = {
    "ready": ready,
    "answer": answer,
    "timed": timed,
}
