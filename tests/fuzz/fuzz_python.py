"""A libFuzzer program: `fuzz_python.py READER [libFuzzer's options] [CORPUS...]`, with atheris."""

from __future__ import annotations

import json
import random
import struct
import sys

import atheris
from json_mutations import change

with atheris.instrument_imports(include=["calib_data", "cmt", "measure", "readers"]):
    import readers


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
        change(value, rng)
    text = json.dumps(value).encode()
    if skip:
        length = struct.unpack("<Q", data[:8])[0]
        text = struct.pack("<Q", len(text)) + text + data[8 + length :]
    return text[:max_size]


def _header(data: bytes) -> bytes:
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    return data[8 : 8 + min(length, len(data))]


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
