"""A replacement that somebody else put into a folder: read by nobody, finished by nobody."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest
from new_report import replace_report

from cmt.bundle.reader import open_bundle
from cmt.bundle.replacing import COMPLETE
from cmt.bundle.writer import describe_file, replacing_files, write_manifest
from cmt.errors import InputError
from cmt.report.comparison import read_source
from cmt.report.document import report_of, write_pages

OTHER = 12345

needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="makes files of another user"
)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def plant(folder: Path, **files: str) -> None:
    (folder / COMPLETE).mkdir()
    for name, text in files.items():
        (folder / COMPLETE / name.replace("__", ".")).write_text(text)


def test_reading_a_report_moves_no_file(stored: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    shutil.copy(stored / "report.json", folder)
    (folder / "notes").write_text("the reader's own")
    plant(folder, notes="planted")
    for argument in (folder, folder / "report.json"):
        read_source(str(argument))
    (folder / COMPLETE / "report.json").write_text("{}")
    read_source(str(folder / "report.json"))  # the file that was named, not another
    assert (folder / "notes").read_text() == "the reader's own"


def test_reading_a_bundle_changes_nothing(stored: Path) -> None:
    plant(stored, notes="planted", manifest__json__sha256="planted")
    before = contents(stored)
    for read in (open_bundle, lambda folder: read_source(str(folder))):
        with pytest.raises(InputError, match=r"manifest\.json"):
            read(stored)
    assert contents(stored) == before


@needs_root
def test_what_another_user_planted_is_not_read(stored: Path) -> None:
    plant(stored, manifest__json="{}", report__json="{}")
    os.chown(stored / COMPLETE, OTHER, OTHER)
    assert report_of(open_bundle(stored))["variant"] == "tiny"
    assert read_source(str(stored)).report["variant"] == "tiny"
    os.chown(stored, OTHER, OTHER)  # whoever owns the bundle may be replacing its files
    with pytest.raises(InputError):
        open_bundle(stored)


@needs_root
def test_what_another_user_planted_is_not_finished(stored: Path, tmp_path: Path) -> None:
    bundle = open_bundle(stored)
    plant(stored, report__md="planted")
    os.chown(stored / COMPLETE, OTHER, OTHER)
    before = contents(stored)
    with pytest.raises(InputError, match="not of this user"):
        replace_report(bundle, report_of(bundle))
    assert contents(stored) == before
    folder = tmp_path / "out"
    folder.mkdir()
    plant(folder, a__html="planted")
    os.chown(folder / COMPLETE, OTHER, OTHER)
    with pytest.raises(InputError, match="not of this user"):
        write_pages({"a.html": "x"}, folder)
    assert contents(folder) == {f"{COMPLETE}/a.html": b"planted"}


def test_a_writer_moves_no_file_of_another_kind(stored: Path, tmp_path: Path) -> None:
    # Such as a replacement that came in an archive.
    bundle = open_bundle(stored)
    plant(stored, Makefile="planted")
    with pytest.raises(InputError, match="holds Makefile, which no command"):
        replace_report(bundle, report_of(bundle))
    assert not (stored / "Makefile").exists()
    folder = tmp_path / "out"
    folder.mkdir()
    plant(folder, Makefile="planted", a__html="planted")
    with pytest.raises(InputError, match="holds Makefile"):
        write_pages({"a.html": "x"}, folder)
    assert not (folder / "a.html").exists()


def test_a_bundle_opens_while_its_report_is_replaced_again_and_again(stored: Path) -> None:
    bundle, stop, replaced = open_bundle(stored), threading.Event(), []

    def keep_replacing() -> None:
        while not stop.is_set():
            with replacing_files(bundle) as new:
                (new / "report.md").write_text("x" * len(replaced))
                entries = [e for e in bundle.manifest["reports"] if e["path"] != "report.md"]
                entries.append(describe_file(new, new / "report.md"))
                write_manifest(new, {**bundle.manifest, "reports": entries})
            replaced.append(None)

    thread = threading.Thread(target=keep_replacing)
    thread.start()
    try:
        while len(replaced) < 5 and thread.is_alive():
            assert open_bundle(stored).manifest["variant"] == "tiny"
    finally:
        stop.set()
        thread.join()
    assert len(replaced) >= 5
