"""The place of a bundle on disk: kept to one run, filled beside it, exchanged at the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from cmt import strict_json
from cmt.bundle.locking import lock
from cmt.bundle.manifest import MANIFEST
from cmt.bundle.reader import open_bundle
from cmt.errors import InputError
from cmt.files import is_own_folder, rename, sync_all


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


def _is_there(workspace: Path, to_be_read: bool) -> bool:
    """Whether there is a workspace; raises InputError for another user's, or what others filled."""
    if not os.path.lexists(workspace):
        return False
    writable = os.name != "nt" and workspace.stat().st_mode & 0o022
    if not is_own_folder(workspace) or (to_be_read and writable):
        raise InputError(
            f"{workspace} is of another user, or others may write to it: remove it, "
            "or choose another --out"
        )
    return True


class Workspace:
    """The folder of a run's intermediate files, beside the bundle so that a rename completes it.

    Args:
        bundle: where the bundle will be, `locked`.
        resume: go on with what an interrupted run left, in place of starting afresh.

    Raises:
        InputError: what is there in its place is not this user's alone.
    """

    def __init__(self, bundle: Path, resume: bool) -> None:
        self.folder = workspace_folder(bundle)
        self._resumed = _is_there(self.folder, to_be_read=resume) and resume
        if not self._resumed:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o700, exist_ok=self._resumed)
        self.folder.chmod(0o700)  # earlier versions let others read

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
        manifest = strict_json.parse(strict_json.read(folder / MANIFEST))
        return {"schema", "artefacts", "golden"} <= manifest.keys()
    except (OSError, ValueError, AttributeError):
        return not any(folder.iterdir())


def recover(bundle: Path) -> None:
    """Bring back the old bundle of a run that was killed just as it was replacing it."""
    workspace = workspace_folder(bundle)
    old = workspace / "replaced"
    if not bundle.exists() and _is_there(workspace, to_be_read=True) and old.is_dir():
        rename(old, bundle)


def finished_run(bundle: Path) -> str | None:
    """The identity of the run that made the bundle; None where there is none that is whole."""
    try:
        return open_bundle(bundle).manifest.get("run")
    except (InputError, OSError):
        return None


def place(finished: Path, bundle: Path) -> None:
    """Rename the finished folder to its place; an old bundle goes only when the new one is in."""
    old = finished.with_name("replaced")
    sync_all(finished)
    if bundle.exists():
        shutil.rmtree(old, ignore_errors=True)  # what a run that was killed left of it
        rename(bundle, old)
    rename(finished, bundle)
    shutil.rmtree(old, ignore_errors=True)
