"""Nothing has its name before it is on the disk, and nothing old goes before the new name is."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from disk import watched
from new_report import replace_report

from cmt.bundle import placing
from cmt.bundle.locking import lock
from cmt.bundle.reader import open_bundle
from cmt.export.stages import Stages
from cmt.files import move, rename, sync_all, write_whole
from cmt.report.document import report_of, write_pages
from cmt.weight_files import save_torch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def replace_a_report(folder: Path) -> None:
    bundle = open_bundle(folder)
    replace_report(bundle, report_of(bundle))


def place_a_bundle(folder: Path) -> None:
    with placing.locked(folder):
        workspace = placing.Workspace(folder, resume=False)
        shutil.copytree(folder, workspace.folder / "bundle")
        placing.place(workspace.folder / "bundle", folder)
        workspace.remove()


def recover_a_bundle(folder: Path) -> None:
    workspace = placing.Workspace(folder, resume=False)
    move(folder, workspace.folder / "replaced")
    placing.recover(folder)


def finish_a_stage(folder: Path) -> None:
    def make(stage: Path) -> None:
        (stage / "within").mkdir()
        (stage / "within" / "array.npy").write_bytes(b"x" * 100)

    Stages(folder / "stages", {}).run("a/b", {}, make)


WRITERS: dict[str, Callable[[Path], object]] = {
    "report": replace_a_report,
    "place": place_a_bundle,
    "recover": recover_a_bundle,
    "stage": finish_a_stage,
    "pages": lambda folder: write_pages({"a.html": "x", "b.md": "y"}, folder),
    "weights": lambda folder: save_torch({"a": torch.zeros(3)}, folder / "a.pt"),
    "engine": lambda folder: write_whole(folder / "a.engine", b"engine"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_renamed_is_on_the_disk_and_what_goes_is_not_needed(
    stored: Path, kind: str
) -> None:
    with watched() as disk:
        sync_all(stored)  # what was there before
        WRITERS[kind](stored)
    assert disk.renames > 0
    assert disk.faults == []


def test_the_watch_sees_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "folder").mkdir()
    with watched() as disk:
        (tmp_path / "a").replace(tmp_path / "b")
        (tmp_path / "folder").rmdir()
    assert len(disk.faults) == 2
    with watched() as disk:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "c").write_text("x")
        rename(tmp_path / "folder", tmp_path / "other")
    assert len(disk.faults) == 2


def _count(file: Path, locked: Path, times: int) -> None:
    for _ in range(times):
        with lock(locked, seconds=60):
            value = int(file.read_text())
            time.sleep(0.0005)
            file.write_text(str(value + 1))


def test_a_lock_has_one_holder_however_many_want_it(tmp_path: Path) -> None:
    counted, locked = tmp_path / "count", tmp_path / ".lock"
    counted.write_text("0")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_count, args=(counted, locked, 60)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert counted.read_text() == "240"
    assert not locked.exists()


def test_a_lock_is_no_way_into_another_file(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r".lock"), lock(tmp_path / ".lock"):
        pass
    assert (tmp_path / "precious").read_text() == "x"


def test_a_workspace_is_this_users_alone(stored: Path) -> None:
    workspace = placing.Workspace(stored, resume=False)
    assert workspace.folder.stat().st_mode & 0o777 == 0o700
    (workspace.folder / "stage").mkdir()
    workspace.folder.chmod(0o755)  # as earlier versions made it
    assert (placing.Workspace(stored, resume=True).folder / "stage").exists()
    assert workspace.folder.stat().st_mode & 0o777 == 0o700
    placing.Workspace(stored, resume=False)
    assert not list(workspace.folder.iterdir())


def make_by_another(folder: Path) -> None:
    folder.mkdir()
    os.chown(folder, 12345, 12345)


PLANTED: dict[str, Callable[[Path], object]] = {
    "link": lambda folder: folder.symlink_to(folder.parent / "elsewhere"),
    "file": lambda folder: folder.write_text(""),
    "of another": make_by_another,
}


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("kind", PLANTED)
def test_a_workspace_that_another_user_made_is_refused(
    stored: Path, kind: str, resume: bool
) -> None:
    if kind == "of another" and os.geteuid() != 0:
        pytest.skip("only root can make a folder of another user")
    (stored.parent / "elsewhere").mkdir()
    PLANTED[kind](placing.workspace_folder(stored))
    with pytest.raises(placing.InputError, match="of another user, or others"):
        placing.Workspace(stored, resume)
    stored.rename(stored.with_name("old"))
    with pytest.raises(placing.InputError, match="of another user, or others"):
        placing.recover(stored)
    assert (stored.parent / "elsewhere").is_dir()


def test_a_workspace_that_others_could_fill_is_not_gone_on_with(stored: Path) -> None:
    folder = placing.Workspace(stored, resume=False).folder
    folder.chmod(0o777)
    with pytest.raises(placing.InputError, match="others may write to it"):
        placing.Workspace(stored, resume=True)
    placing.Workspace(stored, resume=False)


@pytest.mark.parametrize("kind", ["pipe", "folder with a pipe", "endless manifest"])
def test_force_replaces_no_pipe_and_waits_for_none(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "bundle"
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
        if kind == "endless manifest":
            (place / "manifest.json").symlink_to("/dev/zero")
        else:
            os.mkfifo(place / "manifest.json")
    with pytest.raises(placing.InputError, match="is no bundle"):
        placing.check_destination(place, force=True)
    assert placing.finished_run(place) is None
