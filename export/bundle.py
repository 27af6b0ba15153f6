"""The bundle: manifest, golden outputs, and its place on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cmt.errors import InputError
from export.candidates import GRAPHS, Candidate
from export.inputs import sha256_file

SCHEMA = 1
GOLDEN_IMAGES = 8


class Workspace:
    """The folder of a run's intermediate files, beside the bundle so that a rename completes it.

    Args:
        bundle: where the bundle will be.
        resume: go on with what an interrupted run left, in place of starting afresh.

    Raises InputError when nothing can be written there.
    """

    def __init__(self, bundle: Path, resume: bool) -> None:
        self.folder = bundle.with_name(f".{bundle.name}.partial")
        self._resumed = resume and self.folder.is_dir()
        missing = [parent for parent in bundle.parents if not parent.exists()]
        try:
            if not self._resumed:
                shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot write to {bundle.parent} ({error.strerror}): choose another --out"
            ) from error
        self._created = missing

    def remove(self) -> None:
        """Remove the intermediate files of a finished run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def discard(self) -> None:
        """Leave no trace of a run that was refused, unless it went on from an earlier one."""
        if self._resumed:
            return
        self.remove()
        for parent in self._created:  # innermost first
            parent.rmdir()


def check_destination(bundle: Path, force: bool) -> None:
    """Refuse a destination that would be lost, before any work is done."""
    if bundle.exists() and not force:
        raise InputError(f"{bundle} exists: choose another --out, or replace it with --force")
    if bundle.exists() and not _is_bundle(bundle):
        raise InputError(f"{bundle} exists and is no bundle, so --force will not replace it")


def _is_bundle(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        return {"schema", "artefacts", "golden"} <= manifest.keys()
    except (OSError, ValueError, AttributeError):
        return not any(folder.iterdir())


def place(finished: Path, bundle: Path) -> None:
    """Rename the finished folder to its place; an old bundle goes only when the new one is in."""
    old = finished.with_name("replaced")
    if bundle.exists():
        bundle.replace(old)
    finished.replace(bundle)
    shutil.rmtree(old, ignore_errors=True)


def describe_file(root: Path, path: Path) -> dict[str, Any]:
    """A file's entry in the manifest."""
    return {
        "path": path.relative_to(root).as_posix(),
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
    }


def copy_artefacts(
    folder: Path,
    stem: str,
    graphs: Mapping[str, Path],
    candidates: Sequence[Candidate],
    built: Mapping[str, Path],
) -> list[dict[str, Any]]:
    """Copy the ONNX graphs and the targets' files in; returns their manifest entries."""
    entries = []
    for name, source in graphs.items():
        graph = GRAPHS[name]
        if graph.file is None:
            continue
        path = folder / "model" / graph.file.format(name=stem)
        described = {"built_with": {"torch": version("torch")}, "built_for": []}
        entries.append(_copy(folder, source, path, "onnx", graph.precision, described))
    for candidate in candidates:
        source = built[candidate.name]
        described = json.loads((source / "built.json").read_text())
        for file in sorted(source.glob(f"{stem}.*")):
            path = folder / candidate.target.name / file.name
            target, precision = candidate.target.name, candidate.precision
            entries.append(_copy(folder, file, path, target, precision, described))
    return entries


def _copy(
    folder: Path, source: Path, path: Path, target: str, precision: str, built: dict[str, Any]
) -> dict[str, Any]:
    path.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, path)
    return {"target": target, "precision": precision, **describe_file(folder, path), **built}


def write_golden(
    folder: Path, pixels: np.ndarray, outputs: Mapping[str, Sequence[np.ndarray]]
) -> None:
    """Input pixels (N, H, W, 3) uint8 and, per artefact, the outputs that its file gave."""
    folder.mkdir()
    np.save(folder / "images.npy", pixels[:GOLDEN_IMAGES])
    for name, arrays in outputs.items():
        path = folder / f"{name.replace('/', '-')}.npz"
        np.savez(path, *[array[:GOLDEN_IMAGES] for array in arrays])


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json, last of all, so that its presence says the bundle is whole."""
    text = json.dumps({"schema": SCHEMA, **manifest}, indent=1, allow_nan=False)
    (folder / "manifest.json").write_text(text + "\n")
