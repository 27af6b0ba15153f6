"""Golden files whose hashes are right and whose content is not: refused, or the check fails."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmt.bundle.golden import Check, verify
from cmt.bundle.manifest import file_entries
from cmt.bundle.reader import open_bundle
from cmt.bundle.writer import describe_file, write_manifest
from cmt.errors import InputError

IMAGES, PIXELS, PHOTO = "golden/images.npy", "golden/pixels.npy", "golden/photo.jpg"
IR, VALUES = "openvino/cmt_tiny.fp32.xml", "openvino/cmt_tiny.fp32.bin"


@pytest.fixture
def copy(openvino_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(openvino_bundle, tmp_path / "bundle")


def reseal(folder: Path) -> None:
    """All hashes anew, as somebody who edits a bundle by hand would make them."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in file_entries(manifest):
        entry |= describe_file(folder, folder / entry["path"])
    write_manifest(folder, manifest)


def checks(folder: Path) -> dict[str, Check]:
    reseal(folder)
    return {check.name: check for check in verify(open_bundle(folder), threads=1)}


def array_header(shape: str, descr: str = "'|u1'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("went_off",)


def saved(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", saved(np.zeros(3)))
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        array_header("(10000000000,)"),
        array_header("(-1, 32, 32, 3)") + bytes(3072),
        array_header("(" * 3000),
        array_header("(0, 32, 32, 3)"),
        array_header("()") + b"1",
        array_header("(1, 32, 32, 3)", "'|O'") + bytes(3072),
        saved(np.zeros((8, 16, 32, 3), np.uint8)),
        saved(np.zeros((32, 32, 3), np.float32)),
        saved(np.asfortranarray(np.zeros((8, 32, 32, 3), np.uint8))),
        saved(np.array([Bomb()]), allow_pickle=True),
        zipped(),
    ],
    ids=[
        *("empty", "text", "huge", "negative", "nested", "no images", "no dimension", "objects"),
        *("too wide", "floats", "Fortran order", "pickle", "archive"),
    ],
)
@pytest.mark.parametrize("name", [IMAGES, PIXELS])
def test_arrays_of_another_kind_are_refused(
    copy: Path, name: str, content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (copy / name).write_bytes(content)
    with pytest.raises(InputError, match=r"golden.*export the bundle again"):
        checks(copy)
    assert not (tmp_path / "went_off").exists()


@pytest.mark.parametrize("kind", ["text", "EPS", "half", "bomb"])
def test_a_photo_that_cannot_be_decoded_is_refused(copy: Path, kind: str) -> None:
    path = copy / PHOTO
    if kind == "EPS":
        Image.new("RGB", (4, 4)).save(path, "EPS")
    elif kind == "bomb":
        Image.new("1", (20_000, 20_000)).save(path, "PNG")
    else:
        path.write_bytes(b"text" if kind == "text" else path.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"photo.* cannot be decoded"):
        checks(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: "no XML",
        lambda text: text[: len(text) // 2],
        lambda text: re.sub(r'offset="\d+"', 'offset="99999999999"', text),
        lambda text: re.sub(r'size="\d+"', 'size="18446744073709551615"', text),
        lambda text: re.sub(r'type="Convolution"', 'type="RunThis"', text),
        lambda text: re.sub(r'from-layer="\d+"', 'from-layer="999999"', text),
        lambda text: re.sub(r"<dim>\d+</dim>", "<dim>-7</dim>", text),
    ],
)
def test_an_ir_edited_by_hand_is_refused_in_one_line(
    copy: Path, change: Callable[[str], str]
) -> None:
    text = (copy / IR).read_text()
    (copy / IR).write_text(change(text))
    assert change(text) != text
    with pytest.raises(InputError, match=rf"^{IR} cannot be run"):
        checks(copy)


def test_ir_weights_that_are_missing_or_nan_do_not_pass(copy: Path) -> None:
    content = (copy / VALUES).read_bytes()
    (copy / VALUES).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=rf"^{IR} cannot be run"):
        checks(copy)
    constants = re.findall(r'"f32"[^>]* offset="(\d+)" size="(\d+)"', (copy / IR).read_text())
    offset, size = max(((int(a), int(b)) for a, b in constants), key=lambda place: place[1])
    (copy / VALUES).write_bytes(content[:offset] + b"\xff" * size + content[offset + size :])
    assert checks(copy)[IR].passed is False


def test_nan_in_any_output_fails(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of several outputs, too: max() of (0.0, nan) is 0.0.
    from cmt.bundle import golden

    bundle = open_bundle(copy)
    expected = np.load(bundle.file(bundle.artefacts[0]["golden"]["outputs"][0]))
    for artefact in bundle.artefacts:
        artefact["golden"]["outputs"] *= 2
    monkeypatch.setattr(
        golden, "run_artefact", lambda *_: [expected.copy(), np.full_like(expected, np.nan)]
    )
    passed = [check.passed for check in verify(bundle, 1)]
    assert passed == [True, False, False]
