"""C++ opens a bundle while Python replaces its report, and after Python was killed doing so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from cmt.bundle.reader import open_bundle
from cmt.bundle.writer import describe_file, replacing_files, write_manifest

REPORTS = ("report.html", "report.json", "report.md")
MOVED = ("manifest.json", "manifest.json.sha256", *REPORTS)
"""In the order in which they are moved to their places."""


def check(runtime: Path, bundle: Path) -> subprocess.CompletedProcess[str]:
    command = [runtime / "cmt_check", bundle]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def replacement(bundle: Path) -> Path:
    """A finished replacement of the report beside the bundle's files, none of them moved yet."""
    folder = bundle / ".replacement"
    folder.mkdir()
    write_reports(folder, json.loads((bundle / "manifest.json").read_text()), "another")
    return folder


def write_reports(folder: Path, manifest: dict[str, Any], text: str) -> None:
    for name in REPORTS:
        (folder / name).write_text(text)
    entries = [describe_file(folder, folder / name) for name in REPORTS]
    write_manifest(folder, {**manifest, "reports": entries})


@pytest.mark.parametrize("moved", range(len(MOVED) + 1))
def test_a_replacement_that_was_killed_anywhere_is_read_and_left_as_it_is(
    runtime: Path, stored: Path, moved: int
) -> None:
    folder = replacement(stored)
    for name in MOVED[:moved]:
        (folder / name).replace(stored / name)
    before = contents(stored)
    result = check(runtime, stored)
    assert result.returncode in (0, 1), result.stderr  # 1 where INT8 sums are cut off
    assert contents(stored) == before
    assert open_bundle(stored).manifest["reports"][0]["path"] == "report.html"


def test_one_that_was_killed_while_it_was_written_is_of_no_account(
    runtime: Path, stored: Path
) -> None:
    replacement(stored).rename(stored / ".replacement.partial")
    assert check(runtime, stored).returncode in (0, 1)


def test_a_replacement_that_is_damaged_is_refused(runtime: Path, stored: Path) -> None:
    folder = replacement(stored)
    (folder / "report.md").write_text("damaged")
    result = check(runtime, stored)
    assert result.returncode == 2
    assert "report.md is not the file of this bundle" in result.stderr


@pytest.mark.parametrize("link", [".replacement", ".replacement/report.md"])
def test_a_replacement_outside_of_the_bundle_is_not_read(
    runtime: Path, stored: Path, tmp_path: Path, link: str
) -> None:
    replacement(stored)
    shutil.move(stored / link, tmp_path / "elsewhere")
    (stored / link).symlink_to(tmp_path / "elsewhere")
    result = check(runtime, stored)
    if link == ".replacement":  # the bundle's own files are whole
        assert result.returncode in (0, 1), result.stderr
    else:
        assert result.returncode == 2
        assert "leads out of the bundle" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of another user")
def test_what_another_user_planted_is_not_read(runtime: Path, stored: Path) -> None:
    folder = replacement(stored)
    (folder / "manifest.json").write_text("planted")
    os.chown(folder, 12345, 12345)
    result = check(runtime, stored)
    assert result.returncode in (0, 1), result.stderr  # 1 where INT8 sums are cut off
    os.chown(stored, 12345, 12345)  # whoever owns the bundle may be replacing its files
    result = check(runtime, stored)
    assert result.returncode == 2
    assert "manifest.json is damaged" in result.stderr


def test_a_bundle_opens_while_its_report_is_replaced_again_and_again(
    any_runtime: Path, stored: Path
) -> None:
    stop = threading.Event()
    replaced = 0

    def keep_replacing() -> None:
        nonlocal replaced
        bundle = open_bundle(stored)
        while not stop.is_set():
            with replacing_files(bundle) as new:
                write_reports(new, bundle.manifest, f"report {replaced}")
            replaced += 1
            stop.wait(0.02)

    thread = threading.Thread(target=keep_replacing)
    thread.start()
    photo = stored.parent / "photo.jpg"
    shutil.copy(stored / "golden" / "photo.jpg", photo)
    try:
        result = subprocess.run(
            [any_runtime / "tests" / "open_bundles", photo],
            input=f"{stored}\n" * 20,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
    finally:
        stop.set()
        thread.join()
    assert result.stdout.splitlines() == ["ok"] * 20
    assert replaced > 10, "nothing was replaced meanwhile"
