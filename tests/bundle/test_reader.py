"""A bundle is opened only if every byte of it is what was written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from new_report import replace_report

from cmt.bundle.manifest import MANIFEST, SEAL, file_entries, parse_manifest
from cmt.bundle.reader import inside, open_bundle
from cmt.bundle.writer import describe_file, write_manifest
from cmt.errors import InputError
from cmt.report.document import report_of

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def copy(openvino_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of one's own, in another folder than it was made in."""
    return shutil.copytree(openvino_bundle, tmp_path / "moved" / "bundle")


def rewrite(folder: Path, change: Change) -> None:
    """Change the manifest, and its hash with it."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    write_manifest(folder, manifest)


def test_a_moved_bundle_opens_and_knows_its_preprocessing(copy: Path) -> None:
    bundle = open_bundle(copy)
    assert {a["precision"] for a in bundle.artefacts} == {"fp32", "int8"}
    assert bundle.preprocessing.size == (64, 64)
    assert report_of(bundle)["variant"] == "tiny"


def test_one_byte_changed_anywhere_is_refused_and_the_file_named(copy: Path) -> None:
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    assert len(files) >= 13
    for path in files:
        content = path.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1}:
            changed = bytearray(content)
            changed[place] ^= 1
            path.write_bytes(changed)
            with pytest.raises(InputError, match=path.name) as caught:
                open_bundle(copy)
            assert "\n" not in str(caught.value)
        path.write_bytes(content)
    open_bundle(copy)


def test_a_missing_or_shortened_file_is_refused_and_named(copy: Path) -> None:
    path = copy / "openvino" / "cmt_tiny.int8.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"cmt_tiny\.int8\.bin .*bytes in place of"):
        open_bundle(copy)
    path.unlink()
    with pytest.raises(InputError, match=r"cmt_tiny\.int8\.bin .*No such file"):
        open_bundle(copy)


@pytest.mark.parametrize(
    "name",
    [
        "../report.json",
        "golden/../report.json",
        "/etc/hostname",
        "",
        "a//b",
        "./a",
        "C:\\x",
        "a\0b",
    ],
)
def test_paths_that_are_not_within_the_bundle_are_refused(copy: Path, name: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["golden"]["images"]["path"] = name

    rewrite(copy, change)
    with pytest.raises(InputError, match=MANIFEST):
        open_bundle(copy)


def test_a_path_that_is_too_long_is_refused_in_few_words(copy: Path) -> None:
    rewrite(copy, lambda manifest: manifest["golden"]["images"].update(path="a" * 900))
    with pytest.raises(InputError, match="aaa is not the file") as caught:
        open_bundle(copy)
    assert len(str(caught.value)) < 500


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=12) | st.text(alphabet="./\\:a\0 ~", max_size=12))
def test_no_path_of_a_manifest_leads_out_of_the_bundle(name: str) -> None:
    folder = Path(__file__).parent
    try:
        found = inside(folder, name)
    except InputError:
        return
    assert found.is_relative_to(folder.resolve())
    assert found != folder.resolve()


def test_a_link_out_of_the_bundle_is_refused(copy: Path, tmp_path: Path) -> None:
    photo = copy / "golden" / "photo.jpg"
    photo.rename(tmp_path / "photo.jpg")
    photo.symlink_to(tmp_path / "photo.jpg")
    with pytest.raises(InputError, match=r"golden/photo\.jpg.*out of the bundle"):
        open_bundle(copy)


def test_a_newer_schema_is_refused_with_its_version(copy: Path) -> None:
    rewrite(copy, lambda manifest: manifest.update(schema=7, something="new"))
    with pytest.raises(InputError, match=r"schema 7.*reads up to 1.*update"):
        open_bundle(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("labels"),
        lambda m: m["input"].update(layout="NHWC"),
        lambda m: m["input"]["resize"].update(filter="bilinear"),
        lambda m: m["input"].update(std=[0.2, 0.2, 0]),
        lambda m: m["artefacts"][0].update(sha256="x"),
        lambda m: m["artefacts"][-1]["settings"].update(CACHE_DIR="/tmp/elsewhere"),
        lambda m: m.update(surprise=1),
        lambda m: m.update(schema="1"),
        lambda m: m.update(schema=1.0),
        lambda m: m["input"]["shape"].__setitem__(2, 32),
        lambda m: m["input"]["crop"].update(size=[32.0, 32]),
        lambda m: m["input"]["resize"].update(box=[16, 40]),
        lambda m: m["input"]["resize"].update(box=[40, 2**64]),
        lambda m: m["input"].update(std=[0.2, 0.2, 1e-60]),
        lambda m: m["input"].update(mean=[0.2, 0.2, 1e60]),
        lambda m: m["artefacts"][-1]["golden"].update(max_rel=1e60),
        lambda m: m["artefacts"][-1]["golden"]["outputs"].append(m["golden"]["images"]),
        lambda m: m["artefacts"][-1].pop("settings"),
    ],
)
def test_a_manifest_that_breaks_its_schema_is_refused(copy: Path, change: Change) -> None:
    rewrite(copy, change)
    with pytest.raises(InputError, match=MANIFEST):
        open_bundle(copy)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet='[{"schema: 1,}]0', max_size=60).map(str.encode))
def test_garbage_is_no_manifest(content: bytes) -> None:
    with pytest.raises(InputError):
        parse_manifest(content)


def test_a_deeply_nested_manifest_is_refused(copy: Path) -> None:
    (copy / MANIFEST).write_text("[" * 200_000)
    with pytest.raises(InputError, match="damaged"):
        open_bundle(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"schema": 1,', '"schema": 1, "schema": 1,'),
        lambda text: text.replace("0.485", "NaN"),
        lambda text: text.replace("0.485", "1e999"),
        lambda text: text.replace(
            '"environment": {', '"environment": {"x": ' + "[" * 70 + "]" * 70 + ","
        ),
        lambda text: "\ufeff" + text,
        lambda text: text.encode("utf-16"),
        lambda text: text[:-3],
    ],
)
def test_a_manifest_with_more_than_one_meaning_is_refused(
    copy: Path, change: Callable[[str], str | bytes]
) -> None:
    text = (copy / MANIFEST).read_text()
    changed = change(text)
    assert changed != text
    content = changed.encode() if isinstance(changed, str) else changed
    (copy / MANIFEST).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    (copy / SEAL).write_text(f"{digest}  {MANIFEST}\n")
    with pytest.raises(InputError, match=f"{MANIFEST} is damaged"):
        open_bundle(copy)


@pytest.mark.parametrize("name", ["golden/photo.jpg", SEAL])
@pytest.mark.parametrize("kind", ["link to itself", "pipe", "folder"])
def test_what_is_no_file_is_refused_and_named(copy: Path, name: str, kind: str) -> None:
    (copy / name).unlink()
    if kind == "pipe":
        os.mkfifo(copy / name)
    elif kind == "folder":
        (copy / name).mkdir()
    else:
        (copy / name).symlink_to(copy / name)
    with pytest.raises(InputError, match=f"^{name} is not the file"):
        open_bundle(copy)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"schema": 1}', b'{"schema": 1, "schema": 1}'])
def test_a_report_that_breaks_its_schema_is_refused(copy: Path, content: bytes) -> None:
    (copy / "report.json").write_bytes(content)
    rewrite(
        copy,
        lambda manifest: manifest["reports"][0].update(
            describe_file(copy, copy / manifest["reports"][0]["path"])
        ),
    )
    with pytest.raises(InputError, match=r"report\.json"):
        assert report_of(open_bundle(copy))


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no bundle"):
        open_bundle(tmp_path)


def test_a_replaced_report_leaves_a_bundle_that_opens(copy: Path) -> None:
    bundle = open_bundle(copy)
    replace_report(bundle, {**report_of(bundle), "command": "another"})
    again = open_bundle(copy)
    assert report_of(again)["command"] == "another"
    listed = {entry["path"] for entry in file_entries(again.manifest)} | {MANIFEST, SEAL}
    present = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()}
    assert listed == present


def test_an_unusable_report_changes_nothing(copy: Path) -> None:
    bundle = open_bundle(copy)
    with pytest.raises(InputError, match="report"):
        replace_report(bundle, {**report_of(bundle), "schema": 9})
    assert report_of(open_bundle(copy)) == report_of(bundle)
    assert not list(copy.glob(".report-*"))
