"""Settings that files are run with: their names, as reports tell them apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

Settings = Mapping[str, Any]
"""A runtime's property names and values."""
THREADS = "INFERENCE_NUM_THREADS"
"""OpenVINO's name for the number of CPU threads."""
STREAMS = "NUM_STREAMS"
"""OpenVINO's name for the number of inferences at a time."""
PRECISION = "INFERENCE_PRECISION_HINT"
"""OpenVINO's name for the type that it computes in where the file says float."""
DEVICE = "device"
"""Where a file runs, as its runtime calls it, such as GPU; without, on the CPU, an engine on GPU 0.

One of the row's `devices`. It comes with a run and is in no manifest: files are for any device.
"""
CPU = "CPU"
CUDA_GRAPH = "cuda_graph"
"""A setting of engines: `on` launches all kernels of a run as one, `off` one by one."""

SINGLE_STREAM, OFFLINE = SCENARIOS = ("single-stream", "offline")
"""MLPerf Inference's, by name: one image after the other, judged by the 90th percentile of its
latency; and all images at hand at once, judged by images a second (V. J. Reddi et al., "MLPerf
Inference Benchmark", ISCA 2020)."""


class Otherwise(TypedDict):
    """A setting that the runtime took otherwise."""

    asked: object
    in_force: object


class Tried(TypedDict):
    """Settings in a search for the fastest, and the time that a file takes with them."""

    settings: Settings
    p50_ms: float


def callers(settings: Settings) -> int:
    """How many call at once: one for each of OpenVINO's streams, one where it decides itself."""
    streams = str(settings.get(STREAMS, 1))
    return int(streams) if streams.isdecimal() else 1


def settings_of_run(own: Settings, threads: int, batch: int) -> Settings:
    """Settings as the report gives them: a file's own (tuned) threads come before `threads`."""
    return {"threads": own.get(THREADS, threads), "batch": batch, **own}


def as_compiled(asked: Settings, found: Settings) -> tuple[Settings, dict[str, Otherwise]]:
    """Settings of a run as reports give them, and those that the runtime took otherwise.

    They are those in force, but for threads and streams, which tell how the file was called.

    Args:
        asked: of `settings_of_run`.
        found: by the runtime's own names, what it says is in force.

    Returns:
        the settings, and those that differ.
    """
    told = {**found, "threads": found[THREADS]} if THREADS in found else found
    otherwise: dict[str, Otherwise] = {
        name: {"asked": value, "in_force": told[name]}
        for name, value in asked.items()
        if name in told and str(told[name]) != str(value)
    }
    changed = {name: told[name] for name in otherwise if name not in ("threads", THREADS, STREAMS)}
    return {**asked, **changed}, otherwise


def built_settings(folder: Path) -> Settings:
    """What a built file is to be run with."""
    return json.loads((folder / "built.json").read_text()).get("settings", {})
