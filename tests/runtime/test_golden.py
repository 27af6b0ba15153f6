"""What the golden answers are held against: arrays as NumPy writes them, of finite numbers."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmt.bundle.writer import describe_file, write_manifest

ANSWERS = "golden/openvino-int8-logits.npy"


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array(content, array, version)
    return content.getvalue()


def with_header(old: str, new: str, array: np.ndarray | None = None) -> bytes:
    """An array's file with this in its header, as long as before."""
    content = npy(np.ones((2, 3), np.float32) if array is None else array)
    size = 10 + int.from_bytes(content[8:10], "little")
    header = content[10:size].decode()
    assert old in header
    header = header.rstrip().replace(old, new).ljust(size - 11) + "\n"
    return content[:8] + len(header).to_bytes(2, "little") + header.encode() + content[size:]


GOOD = {
    "one side": npy(np.ones(7, np.float32)),
    "two sides": npy(np.ones((2, 3), np.float32)),
    "four sides": npy(np.ones((2, 3, 4, 5), np.uint8)),
    "one value": npy(np.ones((1, 1), np.float32)),
    "large": npy(np.ones((1, 1_000_003), np.uint8)),
    "less filling": with_header("", ""),
}
BAD = {
    "NaN": npy(np.array([[1, np.nan]], np.float32)),
    "infinity": npy(np.array([[1, np.inf]], np.float32)),
    "negative infinity": npy(np.array([[-np.inf, 1]], np.float32)),
    "no values": npy(np.ones((0, 3), np.float32)),
    "no sides": npy(np.float32(1)),
    "Fortran's order": npy(np.asfortranarray(np.ones((2, 3), np.float32))),
    "float64": npy(np.ones((2, 3))),
    "float16": npy(np.ones((2, 3), np.float16)),
    "big endian": npy(np.ones((2, 3), ">f4")),
    "int8": npy(np.ones((2, 3), np.int8)),
    "bool": npy(np.ones((2, 3), bool)),
    "version 2": npy(np.ones((2, 3), np.float32), (2, 0)),
    "version 3": npy(np.ones((2, 3), np.float32), (3, 0)),
    "one byte more": npy(np.ones((2, 3), np.float32)) + b"x",
    "one value more": npy(np.ones((2, 3), np.float32)) + b"\0\0\0\0",
    "one byte less": npy(np.ones((2, 3), np.float32))[:-1],
    "header alone": npy(np.ones((2, 3), np.float32))[:-24],
    "half a header": npy(np.ones((2, 3), np.float32))[:40],
    "empty": b"",
    "pickled": npy(np.array([{}], object)),
    "a record": npy(np.ones(2, [("a", "<f4")])),
    "longer type": with_header("'<f4'", "'<f4x'"),
    "no brace": with_header("{'descr'", " 'descr'"),
    "a word more": with_header("}", "'x': 1}"),
    "other blanks": with_header("(2, 3)", "(2,3)"),
    "a comma more": with_header("(2, 3)", "(2,, 3)"),
    "digits apart": with_header("(2, 3)", "(2, 0 3)"),
    "leading zero": with_header("(2, 3)", "(02, 3)"),
    "never closed": with_header("(2, 3), }", "(2, 3"),
    "negative": with_header("(2, 3)", "(-2, -3)"),
    "far too large": with_header("(2, 3)", "(4294967296, 4294967296)"),
    "nearly false": with_header("False", "False or True"),
    "no array": b"\x93NUMPY\x01\0\xff\xff",
    "no header": b"\x93NUMPY\x01\0\0\0",
    "newline alone": b"\x93NUMPY\x01\0\1\0\n",
    "blanks alone": b"\x93NUMPY\x01\0\2\0 \n",
}


@pytest.mark.parametrize(("files", "good"), [(GOOD, True), (BAD, False)], ids=["good", "bad"])
def test_arrays_are_taken_as_numpy_writes_them_alone(
    runtime: Path, tmp_path: Path, files: dict[str, bytes], good: bool
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    result = subprocess.run(
        [runtime / "tests" / "read_arrays"],
        input="".join(f"{tmp_path / name}\n" for name in files),
        capture_output=True,
        text=True,
        check=True,
    )
    taken = dict(zip(files, result.stdout.splitlines(), strict=True))
    assert [name for name, line in taken.items() if line.isdecimal() != good] == []


def check_with(
    runtime: Path, bundle: Path, change: Callable[[np.ndarray], Any], **golden: Any
) -> Any:
    """cmt_check on the bundle with other golden answers."""
    answers = np.load(bundle / ANSWERS)
    change(answers)
    np.save(bundle / ANSWERS, answers)
    manifest = json.loads((bundle / "manifest.json").read_text())
    for artefact in manifest["artefacts"]:
        for entry in artefact.get("golden", {"outputs": []})["outputs"]:
            entry |= describe_file(bundle, bundle / entry["path"])
    write_manifest(bundle, manifest)
    command = [runtime / "cmt_check", bundle]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [(0, 0), (7, 1), slice(None)])
def test_golden_answers_that_are_no_numbers_are_refused(
    runtime: Path, stored_bundle: Path, value: float, place: Any
) -> None:
    result = check_with(runtime, stored_bundle, lambda a: a.__setitem__(place, value))
    assert result.returncode == 2, result.stdout
    assert f"{ANSWERS} holds NaN or infinity: export the bundle again" in result.stderr


@pytest.mark.parametrize("value", [3e38, 0, -1e9])
def test_golden_answers_that_nothing_computes_fail(
    runtime: Path, stored_bundle: Path, value: float
) -> None:
    result = check_with(runtime, stored_bundle, lambda a: a.fill(value))
    assert result.returncode == 1, result.stderr
    assert "FAILED  openvino" in result.stdout
