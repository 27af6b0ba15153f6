"""Array files that both languages take, and those that both refuse, byte by byte."""

from __future__ import annotations

import io
from typing import Any

import numpy as np


def npy(array: Any, version: tuple[int, int] | None = None) -> bytes:
    """An array's file as NumPy writes it."""
    content = io.BytesIO()
    np.lib.format.write_array(content, np.asanyarray(array), version)
    return content.getvalue()


def with_header(old: str, new: str) -> bytes:
    """A float array's file with this in its header, filled up as before."""
    content = npy(np.ones((2, 3), np.float32))
    size = 10 + int.from_bytes(content[8:10], "little")
    header = content[10:size].decode()
    assert old in header
    header = header.rstrip().replace(old, new).ljust(size - 11) + "\n"
    return content[:8] + len(header).to_bytes(2, "little") + header.encode() + content[size:]


GOOD = {
    "one side": npy(np.ones(7, np.float32)),
    "two sides": npy(np.ones((2, 3), np.float32)),
    "four sides": npy(np.ones((2, 3, 4, 5), np.uint8)),
    "less filling": with_header("", ""),
    "one value": npy(np.ones((1, 1), np.float32)),
    "large": npy(np.ones((1, 1_000_003), np.uint8)),
}
"""Of float32 or uint8."""
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
    "native type": with_header("'<f4'", "'=f4'"),
    "no brace": with_header("{'descr'", " 'descr'"),
    "a word more": with_header("}", "'x': 1}"),
    "other blanks": with_header("(2, 3)", "(2,3)"),
    "a comma more": with_header("(2, 3)", "(2,, 3)"),
    "leading zero": with_header("(2, 3)", "(02, 3)"),
    "never closed": with_header("(2, 3), }", "(2, 3"),
    "negative": with_header("(2, 3)", "(-2, -3)"),
    "far too large": with_header("(2, 3)", "(4294967296, 4294967296)"),
    "many digits": with_header("(2, 3)", f"({'9' * 30},)"),
    "nearly false": with_header("False", "False or True"),
    "another order": with_header(
        "'descr': '<f4', 'fortran_order': False", "'fortran_order': False, 'descr': '<f4'"
    ),
    "no array": b"\x93NUMPY\x01\0\xff\xff",
    "no header": b"\x93NUMPY\x01\0\0\0",
    "newline alone": b"\x93NUMPY\x01\0\1\0\n",
    "int8": npy(np.ones((2, 3), np.int8)),
    "bool": npy(np.ones((2, 3), bool)),
    "digits apart": with_header("(2, 3)", "(2, 0 3)"),
    "blanks alone": b"\x93NUMPY\x01\0\2\0 \n",
}
"""For whoever reads float32."""
