"""NumPy's files of arrays, taken in the one form that this program writes.

`runtime/cpp/src/npy.cpp` keeps the same rules, so that both take the same files.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt.bundle.reader import OpenBundle
from cmt.errors import InputError
from cmt.files import open_regular
from cmt.targets.entries import FileEntry

_MAGIC = b"\x93NUMPY\x01\x00"
_LONGEST_SIDE = 2**32 - 1


def read_array(path: Path, dtype: type[np.generic]) -> NDArray[Any]:
    """An array of this type, in C order, of at least one value and nothing behind the last.

    Raises:
        ValueError: it is something else, or holds NaN or infinity.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        start = file.read(len(_MAGIC) + 2)
        if len(start) < len(_MAGIC) + 2 or not start.startswith(_MAGIC):
            raise ValueError("it is not of NumPy's version 1.0")
        shape = _shape(file.read(int.from_bytes(start[-2:], "little")), np.dtype(dtype))
        count = math.prod(shape)
        if os.fstat(file.fileno()).st_size - file.tell() != count * np.dtype(dtype).itemsize:
            raise ValueError(f"it has not the values of {shape} alone")
        array = np.fromfile(file, dtype, count).reshape(shape)
    if not np.isfinite(array).all():
        raise ValueError("it holds NaN or infinity")
    return array


def bundle_array(bundle: OpenBundle, entry: FileEntry, dtype: type[np.generic]) -> NDArray[Any]:
    """An array file of a bundle: its hash is right, but whoever wrote both may be wrong.

    Raises:
        InputError: `read_array` refuses it.
    """
    try:
        return read_array(bundle.file(entry), dtype)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{entry['path']} is no NumPy array of the kind expected here ({error}): "
            "export the bundle again"
        ) from error


def _shape(header: bytes, dtype: np.dtype[Any]) -> tuple[int, ...]:
    """What the header says; one that NumPy would not have written is refused."""
    found = re.search(rb"\(([0-9, ]{1,400})\)", header)
    shape = tuple(map(int, re.findall(rb"[0-9]{1,10}", found[1]))) if found else ()
    usual = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    if not header.endswith(b"\n") or header[:-1].rstrip(b" ") != usual.encode():
        raise ValueError(f"it is no array of {dtype} in C order")
    if not shape or not all(0 < side <= _LONGEST_SIDE for side in shape):
        raise ValueError(f"it has the shape {shape}")
    return shape
