"""The one table of targets: it drives the command line, the pipeline and the tests.

A package that is installed beside this one adds rows by the entry point group `cmt.targets`;
nothing is ever imported by a name that was read from a bundle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points

from cmt.errors import InputError
from cmt.targets.base import SIMULATED, Loader, Target, Way
from cmt.targets.entries import Entry
from cmt.targets.onnxruntime import TARGET as ONNXRUNTIME
from cmt.targets.openvino import TARGET as OPENVINO
from cmt.targets.reference import TORCH, load_torch
from cmt.targets.settings import DEVICE, Settings
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


_AT_ONCE = {SIMULATED: ONNXRUNTIME.at_once, **{t.name: t.at_once for t in TARGETS.values()}}


def at_once(runtime: str, settings: Settings | None, threads: int) -> Way:
    """How many images are answered fastest by a file of one of `LOADERS`; see `Target.at_once`."""
    return _AT_ONCE.get(runtime, Way)(settings, threads)


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


def not_on_device(target: str, device: str | None) -> str | None:
    """Why a target's files do not run on a device here; None where they do, or none is named."""
    devices = [] if device is None else TARGETS[target].devices()
    if device is None or device in devices:
        return None
    return f"{target} has no device {device} here: " + (", ".join(devices) or "there is no choice")


def require_device(targets: Iterable[str], device: str | None) -> None:
    """Raise InputError, naming the devices that are, where no file runs on this one."""
    names = [name for name in dict.fromkeys(targets) if missing_runtime(name) is None]
    reasons = [not_on_device(name, device) for name in names]
    if reasons and all(reasons):
        raise InputError("; ".join(filter(None, reasons)))


def not_runnable(artefact: Entry, trusted: bool = False, device: str | None = None) -> str | None:
    """Why this machine cannot run a file of a manifest; None where it can.

    Args:
        trusted: somebody who is trusted has signed the manifest.
        device: of the target's `devices`; None takes its first.
    """
    reason = missing_runtime(artefact["target"])
    if reason is None:
        reason = not_on_device(artefact["target"], device)
    if reason is None:
        reason = TARGETS[artefact["target"]].not_for_here(artefact)
    return distrusted(artefact, trusted) if reason is None else reason


def distrusted(artefact: Entry, trusted: bool) -> str | None:
    """Why a file is not run unless somebody vouches for it; None where it may be."""
    ask = TARGETS[artefact["target"]].distrusted
    return None if trusted or ask is None else ask(artefact)


def computes_otherwise(artefact: Entry, device: str | None = None) -> str | None:
    """How a device computes a file of a manifest where that is not as its settings say."""
    settings = {**artefact["settings"], **on_device(device)}
    return TARGETS[artefact["target"]].computes_otherwise(settings)


def on_device(device: str | None) -> Settings:
    """What is to be added to settings for a file to run on a device."""
    return {} if device is None else {DEVICE: device}


def load_settings(
    artefact: Entry,
    settings: Settings | None = None,
    trusted: bool = False,
    device: str | None = None,
) -> Settings:
    """What a file's loader takes, where its settings are these, or the manifest's.

    Args:
        trusted: somebody who is trusted has signed the manifest.
        device: of the target's `devices`; None takes its first, or the one in `settings`.
    """
    target, own = TARGETS[artefact["target"]], settings
    taken = target.load_settings(artefact, artefact["settings"] if own is None else own)
    taken = {**taken, **on_device(device)}
    return taken if target.distrusted is None else {**taken, "trusted": trusted}
