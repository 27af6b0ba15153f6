"""Entries of manifest.json that say what files are; `bundle/schema` says what each field means."""

from __future__ import annotations

from typing import TypedDict

from cmt.targets.settings import Settings, Tried


class FileEntry(TypedDict):
    path: str
    bytes: int
    sha256: str


class Dla(TypedDict):
    core: int
    layers: int
    on_gpu: list[str]


class Reach(TypedDict, total=False):
    batches: list[int]
    gpu: str
    driver: str
    compatible: list[str]
    dla: Dla


class _Built(TypedDict):
    built_with: dict[str, str]
    built_for: list[str]


class Built(_Built, Reach, total=False):
    onnx_sha256: str
    seconds: float
    workspace_bytes: int
    messages: list[str]
    settings: Settings
    tuning: list[Tried]


class Float32Answers(TypedDict, total=False):
    outputs_f32: list[FileEntry]


class GoldenOutputs(Float32Answers):
    """What a file answered on the golden images."""

    outputs: list[FileEntry]
    produced_by: str
    max_rel: float


class _Entry(FileEntry):
    target: str
    precision: str


class Entry(_Entry, Built, total=False):
    """A file of a target, or the graph that one is built from, which has no golden outputs."""

    golden: GoldenOutputs
