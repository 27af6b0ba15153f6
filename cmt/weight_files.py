"""Weight files: safetensors and PyTorch's, of which no code is ever run."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from cmt.containers import choose
from cmt.errors import InputError
from cmt.files import write_whole
from cmt.layouts import State
from cmt.printing import printable

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COUNTERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
MEMORY = "the network in memory"
"""What weights that are in no file are called."""
_ZIP = b"PK\x03\x04"
"""What torch tells its archives by."""


class _Unread:
    """Stands for a NumPy value, such as a best accuracy, of which nothing is made."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


_NUMPY = ("dtype", "ndarray", "core.multiarray.scalar", "core.multiarray._reconstruct")
_SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    *((_Unread, f"numpy.{name}") for name in _NUMPY),
    *((_Unread, f"numpy._{name}") for name in _NUMPY if "." in name),
]
"""What checkpoints may hold beside what torch allows. Nothing of NumPy's is called: it makes
objects of any bytes that it is told are some."""


@dataclass(frozen=True)
class Weights:
    """What was read from a weight file.

    Attributes:
        state: float32 tensors (step counters int64), by the network's own or public names.
        metadata: text.
        notes: a line for each way in which the state is not just what the file holds.
    """

    state: State = field(repr=False)
    metadata: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        """Of all of it but the notes: the same for the same weights, wherever they are."""
        digest = hashlib.sha256(json.dumps(self.metadata, sort_keys=True).encode())
        for name, value in sorted(self.state.items()):
            digest.update(f"\n{name} {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.contiguous().numpy().data)
        return digest.hexdigest()


def in_memory(network: nn.Module) -> Weights:
    """The weights of a network, or of what wraps one, copied as `read` gives a file's.

    Raises:
        InputError: no weights of a CMT, of whatever names `read` knows, or unusable ones.
    """
    state = network.state_dict()
    for key, value in list(state.items()):
        state[key] = value.detach().cpu()
    found, notes = choose(state, None, MEMORY)
    copied = {k: v.clone() for k, v in _clean(found.entries, MEMORY, math.inf).items()}
    return Weights(copied, found.metadata, notes)


def save_torch(content: object, path: Path) -> None:
    """`torch.save`, but a full disk is an OSError that says so, and no file is half written."""
    buffer = io.BytesIO()  # torch's own writing does not say
    torch.save(content, buffer)
    write_whole(path, buffer.getbuffer())


def save_safetensors(state: State, path: Path, metadata: dict[str, str]) -> None:
    """safetensors' own `save_file` leaves a file that its owner alone may read."""
    from safetensors.torch import save

    path.write_bytes(save(state, metadata))


def read(path: Path, key: str | None = None) -> Weights:
    """Read a weight file; never runs code from it.

    Accepts `.safetensors` and PyTorch files: a bare state dict, or whatever holds some; see
    `containers.choose`, of averages and of `key`.

    Raises:
        InputError: missing, empty, damaged, or holding more than tensors, plain values, NumPy's,
            and the `argparse.Namespace` that official checkpoints carry; no weights of this
            network, or none of that key.
    """
    if not path.is_file():
        raise InputError(f"no weights at {path}: give --weights a file, 'demo' or 'random'")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: copy or download the weights again")
    is_safe = path.suffix == ".safetensors"
    content, metadata = _read_safetensors(path) if is_safe else (_read_pickle(path), {})
    found, notes = choose(content, key, path)
    state = _clean(found.entries, path, path.stat().st_size)
    return Weights(state, metadata or found.metadata, notes)


def _read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return state, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is damaged or no safetensors file ({error}): copy it again"
        ) from error


def _read_pickle(path: Path) -> object:
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            return torch.load(_archive(path), map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # torch raises many kinds for damaged and for unsafe files
        text = str(error)
        if "weights_only" in text or "Unsupported" in text:
            raise InputError(
                f"{path} holds Python objects that could run code, or is damaged: "
                "save its state dict alone (torch.save(model.state_dict(), ...))"
            ) from error
        raise InputError(
            f"{path} is damaged or no PyTorch file: copy or download it again"
        ) from error


def _archive(path: Path) -> Path | io.BytesIO:
    """What torch is to read: an archive written anew, so that one reader decides what is in it.

    Two readers find different archives in one file, if it is made for that.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            return path  # of the old format
    result = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(result, "w") as new:
        entries = old.infolist()
        _refuse_compressed(entries, path)
        if len({entry.filename for entry in entries}) < len(entries):
            raise InputError(f"{path} is damaged, with two files of a name: download it again")
        for entry in entries:
            new.writestr(entry.filename, old.read(entry))
    result.seek(0)
    return result


def _refuse_compressed(entries: list[zipfile.ZipInfo], path: Path) -> None:
    """PyTorch stores its archives as they are; compressed, a small file could fill the memory."""
    claimed = sum(entry.file_size for entry in entries)
    if claimed > path.stat().st_size:
        raise InputError(
            f"{path} claims to hold {claimed:,} bytes in a file of {path.stat().st_size:,}: "
            "save the state dict again with torch.save"
        )


def _clean(entries: Mapping[Any, Any], path: object, room: float) -> State:
    """Cast to float32; refuse what is no plain, finite float tensor.

    Args:
        room: bytes that all may take.
    """
    out: State = {}
    for key, value in entries.items():
        name = printable(key)
        plain = _plain(name, value, path)
        # An expanded tensor, one number standing for any many, would fill the memory below.
        room -= plain.numel() * plain.element_size()
        if room < 0:
            raise InputError(f"{path}: '{name}' is larger than the file: save its clone()")
        counts = name.endswith("num_batches_tracked")
        if plain.dtype not in (_COUNTERS + _DTYPES if counts else _DTYPES):
            raise InputError(f"{path}: '{name}' has dtype {plain.dtype}, expected float16 to 64")
        if counts and plain.numel() != 1:
            raise InputError(f"{path}: '{name}' has {plain.numel()} values, expected a counter")
        out[key] = plain.to(torch.int64) if counts else plain.float()
        if not counts and not bool(torch.isfinite(out[key]).all()):
            raise InputError(f"{path}: '{name}' holds NaN or Inf: these weights are broken")
    return out


def _plain(name: str, value: object, path: object) -> Tensor:
    """The tensor without any attribute that stands in the place of a method."""
    if not isinstance(value, Tensor):
        raise InputError(f"{path}: entry '{name}' is no tensor: save the state dict alone")
    odd = value.is_nested or value.is_quantized or value.layout is not torch.strided
    if type(value) not in (Tensor, Parameter) or odd or value.device.type != "cpu":
        raise InputError(f"{path}: '{name}' has no plain values: save it dense, from the CPU")
    return Tensor.detach(value)
