"""A libFuzzer program: `fuzz_python.py READER [libFuzzer's options] [CORPUS...]`, with atheris."""

from __future__ import annotations

import copy
import json
import random
import struct
import sys
from typing import Any

import atheris

with atheris.instrument_imports(include=["calib_data", "cmt", "measure", "readers"]):
    import readers

NASTY: list[Any] = [
    *(None, True, False, "", "x", "\0", "é", "../x", "a" * 300, [], {}, [[]], [0], [0.0, 1.0]),
    *(0, -1, 1, 1.0, 0.5, 2, 3, 4, 32, 1e-300, 1e300, 1e39, 2**31, 2**63, 2**64, 10**30, -(2**63)),
]


def mutate_json(data: bytes, max_size: int, seed: int) -> bytes:
    """Change values within a JSON text; bytes that are none are changed as bytes."""
    rng = random.Random(seed)
    skip = 8 if reader == "safetensors" else 0
    try:
        value = json.loads(_header(data) if skip else data)
    except (ValueError, RecursionError):
        return atheris.Mutate(data, max_size)
    if rng.random() < 0.2 or not isinstance(value, dict | list):
        return atheris.Mutate(data, max_size)
    for _ in range(rng.randint(1, 3)):
        _change(value, rng)
    text = json.dumps(value).encode()
    if skip:
        length = struct.unpack("<Q", data[:8])[0]
        text = struct.pack("<Q", len(text)) + text + data[8 + length :]
    return text[:max_size]


def _header(data: bytes) -> bytes:
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    return data[8 : 8 + min(length, len(data))]


def _change(value: Any, rng: random.Random) -> None:
    places: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        item = pending.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item))
        for key in keys:
            places.append((item, key))
            if isinstance(item[key], dict | list):
                pending.append(item[key])
    if not places:
        return
    holder, key = rng.choice(places)
    what = rng.random()
    if what < 0.6:
        holder[key] = copy.deepcopy(rng.choice(NASTY))
    elif what < 0.75:
        del holder[key]
    elif what < 0.9:
        other, place = rng.choice(places)
        holder[key] = copy.deepcopy(other[place])
    elif isinstance(holder, dict):
        holder[f"{key}x"] = copy.deepcopy(holder[key])
    else:
        holder.append(copy.deepcopy(holder[key]))


def one_input(data: bytes) -> None:
    readers.read(reader, data)


if __name__ == "__main__":
    reader = sys.argv.pop(1)
    if reader in ("checkpoint", "safetensors"):
        from torch._weights_only_unpickler import Unpickler

        from cmt import checkpoints, containers, weight_files

        atheris.instrument_func(Unpickler.load)
        for function in (
            *(weight_files.read, weight_files._clean, weight_files._read_safetensors),
            *(containers.choose, containers._search, containers._walk),
            checkpoints.detect_size,
        ):
            atheris.instrument_func(function)
    options = {"custom_mutator": mutate_json} if reader in readers.IN_JSON else {}
    atheris.Setup(sys.argv, one_input, **options)
    atheris.Fuzz()
