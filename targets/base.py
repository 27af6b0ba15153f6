"""What a target is: one row that says how its files are built, loaded, run and judged.

Generic code asks the row, never its name. All rows are in `registry`; docs/adding_a_target.md has
an example of one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from cmt.targets.entries import Built, Entry
from cmt.targets.settings import Settings

PRECISIONS = ("fp32", "fp16", "int8")
"""From the widest to the narrowest."""
BATCH_SYMBOL = "batch"
"""What files that take any batch call it."""
SIMULATED = "onnxruntime (simulated)"
"""The runtime in place of a target's own that cannot run here, as reports call it."""

Array = NDArray[np.float32]
Batch = NDArray[Any]
"""Normalised float32 (B, 3, H, W), or uint8 (B, H, W, 3) for a file with the preprocessing inside.
"""
Runner = Callable[[Batch], list[Array]]
"""A saved file loaded: maps a batch to the list of the network's outputs. May be called from
several threads at once, but for engines. One of a runtime that says what it made of the file has
`compiled()`, which gives a `Compiled`."""
Task = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows progress: given a title and a number of steps, yields what is called after steps."""


class Compiled(TypedDict):
    """What a runtime made of a file.

    Attributes:
        settings: those in force of the ones that were asked for and can be read back.
        int8_in_file: convolutions and products with weights that the file has in INT8; 0 where the
            device does not tell the layers.
        layers: convolutions and products that run, counted by type (`int8`, `f16`, `bf16`, `f32`).
    """

    settings: Settings
    int8_in_file: int
    layers: dict[str, int]


class Loader(Protocol):
    """Loads a file to run on `threads` CPU threads; None takes the runtime's default settings.

    `batch` is the number of images per inference; None takes the file's own, or any where it
    has none. Torch and the simulation need not be told. Each imports its runtime alone, so that a
    device needs only the one it has.
    """

    def __call__(
        self,
        path: Path,
        threads: int,
        settings: Settings | None = None,
        batch: int | None = None,
    ) -> Runner: ...


@dataclass(frozen=True)
class BuildRequest:
    """What a target builds a file from.

    Attributes:
        graph: the ONNX file of the stage that the target asks for.
        path: where the target's file goes; its folder exists.
        gpu_archs: compute capabilities such as `sm86`, for TensorRT-RTX.
        batches: the least, usual and most images per inference of a target that
            `takes_batch_range`, whose graph takes any; None fixes them to the graph's.
        device: one of the row's `devices` that the file is run on; None takes its first.
    """

    graph: Path
    path: Path
    precision: str
    gpu_archs: Sequence[str] = ()
    batches: tuple[int, int, int] | None = None
    device: str | None = None


@dataclass(frozen=True)
class OnDevice:
    """How a target's files are built anew on the machine where they run.

    Attributes:
        outdated: given a file's entry, the sha256 of its ONNX graph and the settings of a build,
            whether the file cannot be loaded here or is not what the settings ask for.
        build: given the graph, where the file goes, its old entry, the settings and what shows
            progress, writes the file; returns the new fields of its entry.
        notes: lines for people on a file's entry.
    """

    outdated: Callable[[Entry, str, Any], bool]
    build: Callable[[Path, Path, Entry, Any, Task], Built]
    notes: Callable[[Entry], list[str]]


class Prediction(TypedDict):
    """What a builder's record of a graph's layers says of its time on a GPU; nothing is measured.

    Attributes:
        gpu: whose data sheet the rates are from.
        ms: of one inference, by a roofline.
        launches, syncs: of kernels; signals and waits between streams.
        moved, constants: bytes of tensors read and written, and of constants read.
        int8: share of the multiply-adds, 0 to 1.
    """

    gpu: str
    ms: float
    launches: int
    syncs: int
    moved: int
    constants: int
    int8: float


@dataclass(frozen=True)
class Way:
    """How a file is loaded and called where there are many images to answer.

    Attributes:
        threads: of each inference, as `Loader` takes them.
        callers: batches that it is given at a time.
    """

    settings: Settings | None
    threads: int
    callers: int = 1


@dataclass(frozen=True)
class Served:
    """How a model server has a target's files.

    Attributes:
        file: what it calls them.
        backend, kind: Triton's: what runs them, and on which kind of device.
    """

    file: str
    backend: str = ""
    kind: str = "KIND_CPU"


@dataclass(frozen=True)
class GpuAdvice:
    """What a GPU asks of channels, and whether INT8 pays.

    Attributes:
        alignment: precision -> channels that fill its tiles come in multiples of this.
        predict: given a graph, the GPUs that are built for and the batch of a graph that takes any,
            what the builder's record says; None where the builder that is installed keeps none, or
            the rates of none of these GPUs are known.
        doubts: given the share of aligned multiply-adds, 0 to 1, and the batch, what speaks against
            INT8, a clause each: rules of thumb for where nothing can be predicted.
    """

    alignment: Mapping[str, int]
    predict: Callable[[Path, Sequence[str], int], Prediction | None]
    doubts: Callable[[float, int], list[str]]


@dataclass(frozen=True, eq=False)  # rows are their own identity, and keys of what a run makes
class Target:
    """One row of the table.

    Attributes:
        name: on the command line, in bundles and in reports.
        graphs: precision -> the ONNX graph (a stage of the pipeline, `export.graphs`) that it is
            built from.
        suffix: of the built file.
        missing: None if files can be built here, else what to install.
        build: writes the file, returns `built_with`, `built_for` and, where the runtime has any,
            the `settings` to run it with, for the manifest.
        load: what runs a built file.
        missing_runtime: None if this machine can run files, else why not.
        always: precisions that are built even if not asked for, as the reference.
        rival: precision that is built beside int8, for it may be the faster one.
        simulated: the ONNX graph is evaluated, by a simulation, in place of the built file.
        not_timed: why no latency is taken where files are built; None where it is.
        unsupported: what the target's own parser cannot read of a graph, a line each; None where
            the graph has run there already.
        takes_batch_range: its files can take several numbers of images.
        not_for_here: why this machine cannot run one file of a manifest; None where it can.
        computes_otherwise: given a file's settings, a device's name among them, in what that
            computes where it has not the arithmetic that they name; None where it has.
        distrusted: why a file is not run out of a bundle that nobody vouches for, as one that is
            native code and was not built here; None where it is.
        load_settings: what `load` takes for a file with these settings, or the manifest's.
        refuses_batch: given a file's entry, the input's batch and another, why it does not take
            that many images at once; None where it does.
        ways: settings, beside a file's own, that it is measured with in turn on a device.
        served: by the name of a model server, how that has the files; servers that cannot run them
            are not there.
        not_served: why no server runs one file of a manifest; None where they do.
        devices: names of the devices that its files can run on here (`settings.DEVICE`), the CPU
            first; none where there is no choice.
        cached: settings to load a file with, given its own and a folder of the user's in which the
            runtime may keep what it compiled, for the next start; the same where it keeps nothing.
        one_caller: what `load` gives is for one caller at a time.
        takes_streams: runs several inferences at a time, as `settings.STREAMS` says.
        at_once: given a file's settings and the CPU's threads, how many images are answered fastest
            while every answer stays what it is alone.
        tune_space: settings to try, the file's own first, for a number of threads; None where there
            is nothing to search.
        on_device: None where files run wherever they are copied to.
        gpu_advice: None where files run on CPUs.
    """

    name: str
    graphs: Mapping[str, str]
    suffix: str
    missing: Callable[[], str | None]
    build: Callable[[BuildRequest], Built]
    load: Loader
    missing_runtime: Callable[[], str | None]
    always: tuple[str, ...] = ()
    rival: str | None = None
    simulated: bool = False
    not_timed: Callable[[], str] | None = None
    unsupported: Callable[[Path], list[str]] | None = None
    takes_batch_range: bool = False
    not_for_here: Callable[[Entry], str | None] = lambda _: None
    distrusted: Callable[[Entry], str | None] | None = None
    computes_otherwise: Callable[[Settings], str | None] = lambda _: None
    load_settings: Callable[[Entry, Settings], Settings] = lambda _, settings: settings
    refuses_batch: Callable[[Entry, int, int], str | None] = lambda *_: None
    ways: Callable[[Entry], Sequence[Settings]] = lambda _: ({},)
    served: Mapping[str, Served] = field(default_factory=dict)
    not_served: Callable[[Entry], str | None] = lambda _: None
    devices: Callable[[], Sequence[str]] = tuple
    cached: Callable[[Settings, Path], Settings] = lambda settings, _: settings
    one_caller: bool = False
    takes_streams: bool = False
    at_once: Callable[[Settings | None, int], Way] = Way
    tune_space: Callable[[Settings, int], list[Settings]] | None = None
    on_device: OnDevice | None = None
    gpu_advice: GpuAdvice | None = None

    @property
    def runtime(self) -> str:
        """What evaluates the target's files where they are built, one of `registry.LOADERS`."""
        return SIMULATED if self.simulated else self.name

    def precisions(self, asked: Sequence[str]) -> list[str]:
        """What gets built: the asked precisions that the target has, and its references."""
        wanted = {*self.always, *(asked or ["fp32"])}
        if "int8" in wanted and self.rival is not None:
            wanted.add(self.rival)
        return [precision for precision in PRECISIONS if precision in wanted & set(self.graphs)]


def missing_package(name: str) -> str | None:
    """Why a runtime that is the Python package of this name, and our extra, does not run here."""
    if find_spec(name) is None:
        return f"{name} is not installed: pip install 'cmt-export[{name}]'"
    return None


def run_all(
    runner: Runner,
    batches: Iterable[Batch],
    total: int,
    advance: Callable[[int], None],
    callers: int = 1,
) -> list[Array]:
    """All outputs of the first `total` images, surplus of the filled-up last batch cut off.

    Args:
        callers: batches that the runner is given at a time, each by a thread.
    """
    collected: list[list[Array]] = []
    for size, outputs in _called(runner, batches, callers):
        collected.append(outputs)
        advance(size)
    return [np.concatenate(parts)[:total] for parts in zip(*collected, strict=True)]


def _called(
    runner: Runner, batches: Iterable[Batch], callers: int
) -> Iterator[tuple[int, list[Array]]]:
    """The size of each batch and the outputs for it, in order."""
    if callers == 1:
        for batch in batches:
            yield len(batch), runner(batch)
        return
    running: deque[tuple[int, Future[list[Array]]]] = deque()
    with ThreadPoolExecutor(callers) as pool:
        for batch in batches:
            running.append((len(batch), pool.submit(runner, batch)))
            if len(running) > callers:  # one more waits, so that no thread does
                size, outputs = running.popleft()
                yield size, outputs.result()
        for size, outputs in running:
            yield size, outputs.result()
