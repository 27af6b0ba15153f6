"""The one table of targets: it drives the command line, the pipeline and the tests.

A package that is installed beside this one adds rows by the entry point group `cmt.targets`;
nothing is ever imported by a name that was read from a bundle.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points

from cmt.errors import InputError
from cmt.targets.base import SIMULATED, Loader, Target
from cmt.targets.entries import Entry
from cmt.targets.onnxruntime import TARGET as ONNXRUNTIME
from cmt.targets.openvino import TARGET as OPENVINO
from cmt.targets.reference import TORCH, load_torch
from cmt.targets.settings import Settings
from cmt.targets.simulation import load_simulation
from cmt.targets.tensorrt.target import TARGET as TENSORRT

GROUP = "cmt.targets"


def _plug_ins() -> Iterator[Target]:
    for point in entry_points(group=GROUP):
        try:
            yield point.load()
        except Exception as error:  # whatever somebody else's module raises
            raise InputError(
                f"the target '{point.name}' of another package does not load ({error}): mend or "
                f"uninstall {point.dist.name if point.dist else point.value}"
            ) from error


def plug_in_versions() -> dict[str, str]:
    """By target of another package, that package and its version."""
    points = entry_points(group=GROUP)
    return {p.name: f"{p.dist.name} {p.dist.version}" for p in points if p.dist is not None}


def _table(*rows: Target) -> dict[str, Target]:
    table: dict[str, Target] = {}
    for row in rows:
        if row.name in (*table, TORCH, SIMULATED):
            raise InputError(f"two targets are called '{row.name}': uninstall one of them")
        table[row.name] = row
    return table


TARGETS = _table(OPENVINO, TENSORRT, ONNXRUNTIME, *_plug_ins())

LOADERS: dict[str, Loader] = {
    TORCH: load_torch,
    SIMULATED: load_simulation,
    **{target.name: target.load for target in TARGETS.values()},
}
"""What loads files for a runtime."""


def get_target(name: str) -> Target:
    """Look up a target that can be built here; raises InputError otherwise."""
    if name not in TARGETS:
        raise InputError(f"unknown target '{name}': choose from {', '.join(TARGETS)}")
    reason = TARGETS[name].missing()
    if reason is not None:
        raise InputError(f"--target {name}: {reason}")
    return TARGETS[name]


def missing_runtime(target: str) -> str | None:
    """Why this machine cannot run a target's files; None where it can."""
    if target not in TARGETS:
        return f"running {target} files is not part of this version"
    return TARGETS[target].missing_runtime()


def not_runnable(artefact: Entry, trusted: bool = False) -> str | None:
    """Why this machine cannot run a file of a manifest; None where it can.

    Args:
        trusted: somebody who is trusted has signed the manifest.
    """
    reason = missing_runtime(artefact["target"])
    if reason is None:
        reason = TARGETS[artefact["target"]].not_for_here(artefact)
    return distrusted(artefact, trusted) if reason is None else reason


def distrusted(artefact: Entry, trusted: bool) -> str | None:
    """Why a file is not run unless somebody vouches for it; None where it may be."""
    ask = TARGETS[artefact["target"]].distrusted
    return None if trusted or ask is None else ask(artefact)


def computes_otherwise(artefact: Entry) -> str | None:
    """How this machine computes a file of a manifest where that is not as its settings say."""
    return TARGETS[artefact["target"]].computes_otherwise(artefact["settings"])


def load_settings(
    artefact: Entry, settings: Settings | None = None, trusted: bool = False
) -> Settings:
    """What a file's loader takes, where its settings are these, or the manifest's.

    Args:
        trusted: somebody who is trusted has signed the manifest.
    """
    target, own = TARGETS[artefact["target"]], settings
    taken = target.load_settings(artefact, artefact["settings"] if own is None else own)
    return taken if target.distrusted is None else {**taken, "trusted": trusted}
