"""Real runs without room: no bundle, one line that says why, and `--resume` once there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from real_runs import status_of

from cmt.bundle.reader import open_bundle

Grow = Callable[[int], None]


def mount(folder: Path, *options: str) -> None:
    """Mount a file system in memory, or skip the test where that is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    if os.name == "nt" or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("may not mount a small file system here")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 64 KiB large."""
    folder = tmp_path / "disk"
    mount(folder, "size=64k")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def one_line(errors: Path) -> str:
    (line,) = filter(str.strip, errors.read_text().splitlines())
    return line


def test_a_full_disk_stops_the_run_at_any_stage_and_resume_goes_on(
    arguments: Callable[..., list[str]], disk: Path, tmp_path: Path
) -> None:
    options = arguments("disk/bundle", "--target", "openvino", "--int8", "--resume")
    errors, kib = tmp_path / "errors", 64
    stopped = 0
    while status_of(options, tmp_path / "log", errors=errors) != 0:
        assert "the same command with --resume goes on" in one_line(errors)
        assert "space left" in one_line(errors) or "disk may be full" in one_line(errors)
        assert not (disk / "bundle").exists()
        stopped += 1
        kib *= 4
        subprocess.run(["mount", "-o", f"remount,size={kib}k", disk], check=True)
    assert stopped > 3
    open_bundle(disk / "bundle")
    assert [path.name for path in disk.iterdir()] == ["bundle"]


@pytest.mark.skipif(os.name == "nt", reason="limits of a process are POSIX")
def test_files_that_may_not_grow_stop_the_run_and_resume_goes_on(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    options = arguments("bundle", "--target", "openvino", "--resume")
    errors = tmp_path / "errors"
    for limit in (1000, 100_000, 300_000):
        status = status_of(options, tmp_path / "log", errors=errors, largest_file=limit)
        assert status == 3, errors.read_text()
        assert "the same command with --resume goes on" in one_line(errors)
        assert not (tmp_path / "bundle").exists()
    assert status_of(options, tmp_path / "log") == 0
    open_bundle(tmp_path / "bundle")


@pytest.mark.skipif(os.name == "nt", reason="limits of a process are POSIX")
def test_a_lack_of_memory_stops_the_run_and_resume_goes_on(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    options = arguments("bundle", "--int8", "--resume")
    errors = tmp_path / "errors"
    explained = 0
    for mib in (20, 30, 40, 50, 60, 90):
        status = status_of(options, tmp_path / "log", errors=errors, memory=mib << 20)
        assert status != 0
        assert not (tmp_path / "bundle").exists()
        if status == 3:
            assert any(
                line.startswith("cmt-export: ") and "the same command with --resume" in line
                for line in errors.read_text().splitlines()  # libraries write lines of their own
            ), errors.read_text()
            explained += 1
    # Where memory ends, native code of others may crash before anybody can say why: of the limits
    # from 14 to 159 MiB, one in ten did.
    assert explained >= 2
    assert status_of(options, tmp_path / "log") == 0
    open_bundle(tmp_path / "bundle")


def test_an_output_folder_that_may_not_be_written_is_bad_input(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    folder, errors = tmp_path / "disk", tmp_path / "errors"
    mount(folder, "ro")  # root may write to files that only say so
    try:
        status = status_of(arguments("disk/bundle"), tmp_path / "log", errors=errors)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
    assert status == 2
    assert one_line(errors) == (
        f"cmt-export: cannot write to {folder} (Read-only file system): choose another --out"
    )
