"""The place of a bundle on disk: kept to one run, filled beside it, exchanged at the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from cmt.bundle.locking import lock
from cmt.bundle.reader import open_bundle
from cmt.errors import InputError


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
