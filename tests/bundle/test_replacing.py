"""Files that are replaced together, killed at every step: all the old ones or all the new."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from new_report import replace_report

from cmt.bundle import replacing as exchange
from cmt.bundle.locking import lock
from cmt.bundle.manifest import MANIFEST, SEAL, file_entries
from cmt.bundle.reader import OpenBundle, open_bundle
from cmt.bundle.replacing import COMPLETE, LOCK, newest, replacing
from cmt.bundle.writer import write_manifest
from cmt.errors import InputError
from cmt.measure import bench
from cmt.report.comparison import read_source
from cmt.report.document import report_of, write_pages

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")


def killed_at_rename(number: int, work: Callable[[], object]) -> bool:
    """Do the work in a process that is killed at its rename of this number; False if it ended."""
    child = os.fork()
    if child == 0:
        rename, count = Path.replace, 0

        def counting(path: Path, target: Path) -> Path:
            nonlocal count
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return rename(path, target)

        Path.replace = counting  # type: ignore[method-assign]
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def write(folder: Path, text: str) -> None:
    with replacing(folder, lambda: "abc") as new:
        for name in "abc":
            (new / name).write_text(text)


@needs_fork
def test_killed_at_every_step_the_files_are_all_old_or_all_new(tmp_path: Path) -> None:
    seen = set()
    for number in range(10):
        write(tmp_path, "old")
        killed = killed_at_rename(number, lambda: write(tmp_path, "new"))
        texts = {newest(tmp_path, name).read_text() for name in "abc"}
        assert len(texts) == 1
        seen |= texts
        write(tmp_path, "newer")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
        if not killed:
            break
    assert seen == {"old", "new"}
    assert number == 4  # three files and the rename before them


def test_an_error_while_writing_changes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, "old")

    def fail() -> None:
        with replacing(tmp_path, lambda: "abc") as new:
            (new / "a").write_text("new")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        "abc", "old"
    )


def test_a_link_is_no_replacement(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / COMPLETE).symlink_to(precious)
    (folder / "file").write_text("own")
    assert newest(folder, "file").read_text() == "own"
    with pytest.raises(InputError, match="not of this user"):
        write(folder, "new")
    assert (precious / "file").exists()


@needs_fork
def test_pages_of_a_killed_command_are_reclaimed_by_the_next(tmp_path: Path) -> None:
    pages = {"page.html": "1", "page.md": "2"}
    assert killed_at_rename(0, lambda: write_pages(pages, tmp_path))
    assert not (tmp_path / "page.html").exists()
    write_pages(pages, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "page.md"]


@pytest.fixture
def copy(stored: Path) -> Path:
    """A bundle of one's own."""
    return stored


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@needs_fork
def test_a_bundle_opens_after_a_kill_at_any_step_of_replacing_its_report(copy: Path) -> None:
    bundle, before = open_bundle(copy), "old"
    replace_report(bundle, {**report_of(bundle), "command": before})
    killed = []
    for number in range(7):  # 0 makes it valid, 1 to 5 move the files
        replace_report(bundle, {**report_of(bundle), "command": before})
        new = {**report_of(bundle), "command": f"{number}"}
        killed.append(killed_at_rename(number, lambda new=new: replace_report(bundle, new)))
        left = contents(copy)
        for report in (report_of(open_bundle(copy)), read_source(str(copy)).report):
            assert report["command"] == (before if number == 0 else f"{number}")
        assert contents(copy) == left, "reading changes nothing"
        before = report["command"]
    assert killed == [True] * 6 + [False]
    listed = {entry["path"] for entry in file_entries(open_bundle(copy).manifest)}
    present = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()}
    assert present == listed | {MANIFEST, SEAL}


def entry_of(bundle: OpenBundle, machine: str) -> bench.Row:
    environment = report_of(bundle)["environment"]
    return {
        "machine": machine,
        "measured": report_of(bundle)["created"],
        "command": "cmt-bench",
        "environment": environment,
        "results": report_of(bundle)["results"][:1],
    }


def test_results_of_a_bundle_that_was_replaced_meanwhile_are_refused(copy: Path) -> None:
    measured = open_bundle(copy)
    report = (copy / "report.json").read_bytes()
    write_manifest(copy, {**measured.manifest, "labels": ["cat", "dog"]})
    with pytest.raises(InputError, match="was replaced while it was measured"):
        bench.save(measured, entry_of(measured, "here"))
    assert open_bundle(copy).manifest["labels"] == ["cat", "dog"]
    assert (copy / "report.json").read_bytes() == report


def test_results_of_two_runs_at_once_are_both_kept(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = open_bundle(copy), open_bundle(copy)
    bench.save(first, entry_of(first, "one"))
    bench.save(second, entry_of(second, "two"))
    assert [m["machine"] for m in report_of(open_bundle(copy))["machines"]] == ["one", "two"]
    monkeypatch.setattr(exchange, "WAITING_SECONDS", 0.1)
    with lock(copy / LOCK), pytest.raises(InputError, match="another cmt-bench"):
        bench.save(first, entry_of(first, "one"))
