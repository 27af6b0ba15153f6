"""The C interface, called by Python's ctypes and by a C program, answers as `cmt.Classifier`."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cmt
from cmt.bundle.writer import write_manifest

FILE = "openvino/int8"
TOP = 5


class Options(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_char_p),
        ("device", ctypes.c_char_p),
        ("threads", ctypes.c_int),
        ("trust_key", ctypes.c_char_p),
        ("unsigned_engines", ctypes.c_int),
    )


class Pixels(ctypes.Structure):
    _fields_ = (
        ("pixels", ctypes.c_void_p),
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("stride", ctypes.c_size_t),
        ("format", ctypes.c_int),
        ("chroma", ctypes.c_void_p),
    )


class Prediction(ctypes.Structure):
    _fields_ = (
        ("index", ctypes.c_size_t),
        ("label", ctypes.c_char_p),
        ("probability", ctypes.c_float),
        ("score", ctypes.c_float),
    )


def check(library: Any, status: int) -> None:
    """Raise InputError where the status says so, with the last error."""
    assert status in (0, 2)
    if status == 2:
        raise cmt.InputError(library.cmt_last_error().decode())


@pytest.fixture(scope="module")
def library(runtime: Path) -> Any:
    if runtime.name == "sanitized":
        pytest.skip("Python has no sanitizers; use_c_interface has")
    loaded = ctypes.CDLL(str(runtime / "libcmt_runtime.so"))
    for name in ("cmt_version", "cmt_last_error", "cmt_last_warning", "cmt_artefact", "cmt_label"):
        getattr(loaded, name).restype = ctypes.c_char_p
    loaded.cmt_label_count.restype = ctypes.c_size_t
    for name in ("cmt_artefact", "cmt_label_count", "cmt_close"):
        getattr(loaded, name).argtypes = [ctypes.c_void_p]
    loaded.cmt_label.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return loaded


Open = Callable[..., ctypes.c_void_p]


@pytest.fixture
def opened(library: Any) -> Any:
    """`opened(bundle, **options)`: a handle, which is closed in the end."""
    handles = []

    def make(bundle: Path, **options: Any) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        taken = Options(**{"file": FILE.encode(), "threads": 1, **options})
        status = library.cmt_open(str(bundle).encode(), ctypes.byref(taken), ctypes.byref(handle))
        assert (status == 0) == bool(handle)
        check(library, status)
        handles.append(handle)
        return handle

    yield make
    for handle in handles:
        library.cmt_close(handle)


def classes(library: Any, name: str, *arguments: Any, top: int = TOP) -> list[tuple[Any, ...]]:
    best, found = (Prediction * TOP)(), ctypes.c_size_t()
    status = getattr(library, f"cmt_classify_{name}")(
        *arguments, ctypes.c_size_t(top), best, ctypes.byref(found)
    )
    check(library, status)
    return [
        (one.index, one.label.decode(), one.probability, one.score) for one in best[: found.value]
    ]


def beside(ours: list[tuple[Any, ...]], theirs: list[Any]) -> None:
    expected = [(one.index, one.label) for one in theirs]
    assert [one[:2] for one in ours] == expected
    figures = [(one.probability, one.score) for one in theirs]
    np.testing.assert_allclose([one[2:] for one in ours], figures, atol=1e-5)


def test_files_bytes_and_pixels_are_answered_as_by_python(
    library: Any, opened: Open, stored: Path
) -> None:
    handle, photo = opened(stored), stored / "golden" / "photo.jpg"
    with Image.open(photo) as picture:
        rgb = np.asarray(picture.convert("RGB"))
    height, width = rgb.shape[:2]
    image = Pixels(rgb.ctypes.data, width, height, 3 * width, 0, None)
    content = photo.read_bytes()
    with cmt.Classifier(stored, FILE, threads=1) as classifier:
        assert library.cmt_artefact(handle).decode() == classifier.artefact
        count = library.cmt_label_count(handle)
        labels = tuple(library.cmt_label(handle, i).decode() for i in range(count))
        assert labels == classifier.labels
        of_file, of_array = classifier.classify(photo), classifier.classify(rgb)
    beside(classes(library, "file", handle, str(photo).encode()), of_file)
    beside(classes(library, "bytes", handle, content, ctypes.c_size_t(len(content))), of_file)
    beside(classes(library, "pixels", handle, ctypes.byref(image)), of_array)
    assert library.cmt_version().decode() == cmt.__version__
    assert library.cmt_last_error() == b""


def test_what_is_unusable_is_refused_in_pythons_words(
    library: Any, opened: Open, stored: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    photo = str(stored / "golden" / "photo.jpg").encode()
    handle = opened(stored)
    classifier = cmt.Classifier(stored, FILE)
    for ours, theirs in (
        (
            lambda: opened(stored, threads=5000),
            lambda: cmt.Classifier(stored, threads=5000),
        ),
        (lambda: opened(tmp_path), lambda: cmt.Classifier(tmp_path)),
        (
            lambda: classes(library, "file", handle, photo, top=0),
            lambda: classifier.classify(photo.decode(), top=0),
        ),
    ):
        with pytest.raises(cmt.InputError) as error:
            theirs()
        with pytest.raises(cmt.InputError, match=re.escape(str(error.value))):
            ours()
    with pytest.raises(cmt.InputError, match=re.escape(f"{text}: it is no JPEG or PNG file")):
        classes(library, "file", handle, str(text).encode())


def test_what_of_an_image_is_doubtful_is_said(
    library: Any, opened: Open, stored: Path, tmp_path: Path
) -> None:
    manifest = json.loads((stored / "manifest.json").read_text())
    manifest["input"]["image_range"] = [0, 1000]
    write_manifest(stored, manifest)
    deep, plain = tmp_path / "deep.png", stored / "golden" / "photo.jpg"
    Image.fromarray(np.full((40, 40), 2000, np.uint16)).save(deep)
    handle = opened(stored)
    classes(library, "file", handle, str(deep).encode())
    words = b"1600 values are outside of the bundle's image range and were clipped"
    assert library.cmt_last_warning() == words
    classes(library, "file", handle, str(plain).encode())
    assert library.cmt_last_warning() == b""


def test_a_c_program_may_expect_what_the_header_says(
    runtime: Path, stored: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    program = runtime / "tests" / "use_c_interface"
    command = [program, stored, stored / "golden" / "photo.jpg", text]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
