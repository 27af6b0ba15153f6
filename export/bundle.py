"""The bundle as it is made: its files, golden outputs, and its place on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from calib_data.preprocessing import Preprocessing
from cmt import strict_json
from cmt.errors import InputError
from export.candidates import GRAPHS, Candidate
from measure.bundle import Entry, describe_file, open_bundle
from measure.golden import IMAGES, MAX_GREY_LEVELS, TOLERANCES, make_photo
from measure.locking import lock


def workspace_folder(bundle: Path) -> Path:
    """Where a run that makes this bundle keeps its progress: hidden, and itself no bundle."""
    return bundle.with_name(f".{bundle.name}.partial")


@contextmanager
def locked(bundle: Path) -> Iterator[None]:
    """Keep the bundle's place to this run; folders above it that stay empty go again.

    Raises:
        InputError: another run is writing this bundle, or nothing can be written there.
    """
    from filelock import Timeout

    file = bundle.with_name(f".{bundle.name}.lock")
    missing = [parent for parent in bundle.parents if not parent.exists()]
    with ExitStack() as stack:
        stack.callback(_remove_empty, missing)
        try:
            bundle.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(file))
        except Timeout as error:
            raise InputError(
                f"another run is writing {bundle}: wait for it, or choose another --out"
            ) from error
        except OSError as error:
            raise InputError(
                f"cannot write to {bundle.parent} ({error.strerror}): choose another --out"
            ) from error
        yield


def _remove_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):
        for folder in folders:  # innermost first, up to one that is not empty
            folder.rmdir()


class Workspace:
    """The folder of a run's intermediate files, beside the bundle so that a rename completes it.

    Args:
        bundle: where the bundle will be, `locked`.
        resume: go on with what an interrupted run left, in place of starting afresh.
    """

    def __init__(self, bundle: Path, resume: bool) -> None:
        self.folder = workspace_folder(bundle)
        self._resumed = resume and self.folder.is_dir()
        if not self._resumed:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(exist_ok=True)

    def remove(self) -> None:
        """Remove the intermediate files of a finished run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def discard(self) -> None:
        """Leave no trace of a run that was refused, unless it went on from an earlier one."""
        if not self._resumed:
            self.remove()


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


def recover(bundle: Path) -> None:
    """Bring back the old bundle of a run that was killed just as it was replacing it."""
    old = workspace_folder(bundle) / "replaced"
    if old.is_dir() and not bundle.exists():
        old.replace(bundle)


def finished_run(bundle: Path) -> str | None:
    """The identity of the run that made the bundle; None where there is none that is whole."""
    try:
        return open_bundle(bundle).manifest.get("run")
    except (InputError, OSError):
        return None


def place(finished: Path, bundle: Path) -> None:
    """Rename the finished folder to its place; an old bundle goes only when the new one is in."""
    old = finished.with_name("replaced")
    if bundle.exists():
        shutil.rmtree(old, ignore_errors=True)  # what a run that was killed left of it
        bundle.replace(old)
    finished.replace(bundle)
    shutil.rmtree(old, ignore_errors=True)


def write_sbom(folder: Path, weights_sha256: str | None) -> Entry:
    """The bundle's bill of materials; returns its manifest entry."""
    from export.sbom import build_sbom

    path = folder / "sbom.cdx.json"
    path.write_text(strict_json.dump(build_sbom(weights_sha256)), encoding="utf-8")
    return describe_file(folder, path)


def copy_artefacts(
    folder: Path,
    stem: str,
    graphs: Mapping[str, Path],
    candidates: Sequence[Candidate],
    built: Mapping[str, Path],
    golden: Mapping[str, Entry],
) -> list[Entry]:
    """Copy the ONNX graphs and the targets' files in; returns their manifest entries.

    Args:
        golden: by candidate name, the `golden` of the file that its runtime loads.
    """
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
        settings = described.pop("settings", {})
        for file in sorted(source.glob(f"{stem}.*")):
            path = folder / candidate.target.name / file.name
            target, precision = candidate.target.name, candidate.precision
            entry = _copy(folder, file, path, target, precision, described)
            if file.suffix == f".{candidate.target.suffix}":
                entry |= {"settings": settings, "golden": golden[candidate.name]}
            entries.append(entry)
    return entries


def _copy(
    folder: Path, source: Path, path: Path, target: str, precision: str, built: dict[str, Any]
) -> Entry:
    path.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, path)
    return {"target": target, "precision": precision, **describe_file(folder, path), **built}


def write_golden_inputs(
    folder: Path, pixels: np.ndarray, preprocessing: Preprocessing
) -> dict[str, Any]:
    """Prepared images, and a photo with what preprocessing makes of it; the manifest's `golden`.

    Args:
        pixels: (N, H, W, 3) uint8; the first few are taken.
    """
    from PIL import Image

    golden = folder / "golden"
    golden.mkdir()
    np.save(golden / "images.npy", pixels[:IMAGES])
    make_photo(golden / "photo.jpg")
    with Image.open(golden / "photo.jpg") as photo:
        np.save(golden / "pixels.npy", preprocessing.apply(photo))
    files = {"images": "images.npy", "photo": "photo.jpg", "pixels": "pixels.npy"}
    entries = {key: describe_file(folder, golden / name) for key, name in files.items()}
    return {**entries, "max_grey_levels": MAX_GREY_LEVELS}


def write_golden_outputs(
    folder: Path, candidate: Candidate, names: Sequence[str], outputs: Sequence[np.ndarray]
) -> Entry:
    """What a file answered on the golden images; returns the `golden` of its manifest entry.

    Args:
        names: of the network's outputs.
        outputs: one array (N, ...) each; the first few images are taken.
    """
    entries = []
    for name, array in zip(names, outputs, strict=True):
        file = f"{candidate.target.name}-{candidate.precision}-{name}.npy"
        np.save(folder / "golden" / file, array[:IMAGES])
        entries.append(describe_file(folder, folder / "golden" / file))
    return {
        "outputs": entries,
        "produced_by": candidate.target.runtime,
        "max_rel": TOLERANCES[candidate.precision],
    }
