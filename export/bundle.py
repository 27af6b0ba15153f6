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


def workspace_for(bundle: Path) -> Path:
    """The folder of intermediate files, beside the bundle so that a rename completes it."""
    return bundle.with_name(f".{bundle.name}.partial")


def check_destination(bundle: Path, force: bool) -> None:
    """Refuse a destination that would be lost or cannot be written, before any work is done."""
    if bundle.exists() and not force:
        raise InputError(f"{bundle} exists: choose another --out, or replace it with --force")
    if bundle.exists() and not _is_bundle(bundle):
        raise InputError(f"{bundle} exists and is no bundle, so --force will not replace it")


def open_workspace(bundle: Path, resume: bool) -> Path:
    """Create the workspace, or with `resume` go on with the one an interrupted run left."""
    workspace = workspace_for(bundle)
    try:
        if not resume:
            shutil.rmtree(workspace, ignore_errors=True)
        workspace.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write to {bundle.parent} ({error.strerror}): choose --out"
        ) from error
    return workspace


def _is_bundle(folder: Path) -> bool:
    return folder.is_dir() and ((folder / "manifest.json").is_file() or not any(folder.iterdir()))


def place(finished: Path, bundle: Path) -> None:
    """Rename the finished folder to its place; an old bundle goes only when the new one is in."""
    old = bundle.with_name(f".{bundle.name}.old")
    shutil.rmtree(old, ignore_errors=True)
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
        assert graph.file is not None
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
