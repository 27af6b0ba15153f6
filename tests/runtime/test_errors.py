"""Whatever is unusable, a program meets an Error of the library, a user one line and a status."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmt.bundle.manifest import file_entries
from cmt.bundle.writer import describe_file, write_manifest
from cmt.targets.settings import PRECISION

TOOLS = ("cmt_check", "cmt_classify", "cmt_bench")


def run(program: Path, *arguments: str | bytes | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        timeout=120,
    )


def command(runtime: Path, tool: str, bundle: Path) -> list[str | Path]:
    """A tool that does its work on a bundle."""
    more: dict[str, list[str | Path]] = {
        "cmt_check": [],
        "cmt_classify": [bundle / "golden" / "photo.jpg"],
        "cmt_bench": ["--seconds", "0.05"],
    }
    return [runtime / tool, bundle, *more[tool]]


def vouch(folder: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
    """Make the manifest say of every file what it is now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    for entry in file_entries(manifest):
        entry |= describe_file(folder, folder / entry["path"])
    write_manifest(folder, manifest)


def replaced(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    vouch(folder)


def made_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def made_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def made_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


MODEL = "openvino/cmt_tiny.int8.xml"
UNUSABLE: dict[str, Callable[[Path], object]] = {
    "no model": lambda b: replaced(b, MODEL, b"this is no network"),
    "empty model": lambda b: replaced(b, MODEL, b""),
    "half a model": lambda b: replaced(b, MODEL, (b / MODEL).read_bytes()[:5000]),
    "half the weights": lambda b: replaced(b, MODEL.replace("xml", "bin"), b"x" * 1000),
    "no weights": lambda b: (b / MODEL).with_suffix(".bin").unlink(),
    "no folder": lambda b: shutil.rmtree(b),
    "empty folder": lambda b: (shutil.rmtree(b), b.mkdir()),
    "no manifest": lambda b: (b / "manifest.json").unlink(),
    "no seal": lambda b: (b / "manifest.json.sha256").unlink(),
    "a folder as manifest": lambda b: (
        (b / "manifest.json").unlink(),
        (b / "manifest.json").mkdir(),
    ),
    "a folder as a file": lambda b: ((b / MODEL).unlink(), (b / MODEL).mkdir()),
    "links in a circle": lambda b: ((b / MODEL).unlink(), (b / MODEL).symlink_to(b / MODEL)),
    "manifest linked in a circle": lambda b: (
        (b / "manifest.json").unlink(),
        (b / "manifest.json").symlink_to("manifest.json"),
    ),
    "a manifest without an end": lambda b: os.truncate(b / "manifest.json", 2**26 + 1),
    "a seal without an end": lambda b: os.truncate(b / "manifest.json.sha256", 2**40),
    "a pipe as manifest": lambda b: made_pipe(b / "manifest.json"),
    "a pipe as seal": lambda b: made_pipe(b / "manifest.json.sha256"),
    "a pipe as a file": lambda b: made_pipe(b / "golden" / "images.npy"),
    "a device as manifest": lambda b: made_device(b / "manifest.json"),
    "a device as a file": lambda b: made_device(b / "golden" / "pixels.npy"),
    "a file as bundle": lambda b: (shutil.rmtree(b), b.write_bytes(b"x")),
}
PATHS = ("x" * 300, "x/" * 3000, "bundle/manifest.json", "", ".", "/dev/null", "/proc/self/mem")


def run_in_float32(bundle: Path) -> None:
    """Have the file run where it would be left out, on CPUs without BF16."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    for artefact in manifest["artefacts"]:
        if PRECISION in artefact.get("settings", {}):
            artefact["settings"][PRECISION] = "f32"
    write_manifest(bundle, manifest)


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_program_meets_an_error_of_the_library_alone(
    runtime: Path, stored: Path, tmp_path: Path, kind: str
) -> None:
    photo = shutil.copy(stored / "golden" / "photo.jpg", tmp_path)
    run_in_float32(stored)
    UNUSABLE[kind](stored)
    program = [runtime / "tests" / "open_bundles", photo]
    result = subprocess.run(
        program, input=f"{stored}\n", capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("input: "), result.stdout
    for tool in TOOLS:
        one = run(*command(runtime, tool, stored))
        assert one.returncode == 2, one.stderr
        assert one.stderr.splitlines()[-1].startswith(f"{tool}: ")


def test_paths_of_any_kind_lead_to_an_error_of_the_library(
    runtime: Path, stored: Path, tmp_path: Path
) -> None:
    program = [runtime / "tests" / "open_bundles", stored / "golden" / "photo.jpg"]
    result = subprocess.run(
        program, input="\n".join(PATHS) + "\n", capture_output=True, text=True, check=True
    )
    lines = result.stdout.splitlines()
    assert len(lines) == len(PATHS)
    assert all(line.startswith("input: ") for line in lines), lines


@pytest.mark.parametrize("path", ["", "none.jpg", "/dev/zero", "/", "x" * 5000, "pipe"])
def test_images_of_any_kind_are_refused_in_one_line(
    any_runtime: Path, stored: Path, tmp_path: Path, path: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    result = run(any_runtime / "cmt_classify", stored, tmp_path / path if path else "")
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith("cmt_classify: ")


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("what", ["--help", "text", "--json"])
def test_output_that_is_lost_is_a_failure(
    any_runtime: Path, stored: Path, tool: str, what: str
) -> None:
    arguments = command(any_runtime, tool, stored)
    if what == "--json" and tool == "cmt_check":
        pytest.skip("it has no --json")
    if what != "text":
        arguments.append(what)
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            arguments, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert result.returncode == 3
    assert f"{tool}: cannot write the output (No space left on device)" in result.stderr
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert closed.returncode == 3, closed.stderr


@pytest.mark.parametrize("name", [b"\xff", b"", b"a\nb", b"\x1b[2J", b"a\xe2\x80\xaeb", b"a  b"])
def test_a_machine_without_a_name_is_refused_before_anything_is_measured(
    runtime: Path, stored: Path, name: bytes
) -> None:
    options = ("--seconds", "30", "--json", "--machine")
    result = run(runtime / "cmt_bench", stored, *options, name)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "is no name: give visible characters in UTF-8" in result.stderr


def test_a_path_that_is_no_utf8_keeps_its_measurement(
    runtime: Path, stored: Path, tmp_path: Path
) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff\xfe bundle"
    stored.rename(os.fsdecode(odd))
    result = run(
        runtime / "cmt_bench", odd, "--seconds", "0.05", "--json", "--artefact=openvino/int8"
    )
    assert result.returncode == 0, result.stderr
    assert "\N{REPLACEMENT CHARACTER} bundle" in json.loads(result.stdout)["command"]
    photo = odd + b"/golden/photo.jpg"
    result = run(runtime / "cmt_classify", odd, photo, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["classes"]
