"""Damaged files, files that claim more than they hold, and files with code in them are refused."""

from __future__ import annotations

import datetime
import fractions
import json
import pickle
import resource
import struct
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import assert_holds, official_checkpoint, refusal, saved
from safetensors.torch import save_file
from torch import Tensor

from cmt import load_model
from cmt.layouts import to_public_layout
from cmt.network import CMT
from cmt.weight_files import read

State = dict[str, Tensor]
MakeTiny = Callable[..., CMT]


# Damaged and dangerous files


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_missing_file_is_refused(name: str, tmp_path: Path) -> None:
    assert f"no weights at {tmp_path / name}" in refusal(tmp_path / name, "ti")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    assert str(tmp_path / name) in refusal(tmp_path / name, "ti")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_an_empty_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert "is empty" in refusal(tmp_path / name, "ti")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(name: str, share: float, state: State, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w"])
@pytest.mark.parametrize("text", ["<!DOCTYPE html>\n<html>\n", "version https://git-lfs\noid 1\n"])
def test_a_text_file_is_refused(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert "damaged" in refusal(tmp_path / name, "ti")


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("place", ["args", "model", "alone"])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    place: str, state: State, tmp_path: Path
) -> None:
    target = tmp_path / "created"
    bomb = Bomb(target)
    pickle.loads(pickle.dumps(bomb)).close()
    assert target.exists(), "the bomb must work where nothing stops it"
    target.unlink()
    content = bomb if place == "alone" else official_checkpoint(state, **{place: bomb})
    assert "could run code" in refusal(saved(content, tmp_path))
    assert not target.exists()


@pytest.mark.parametrize(
    "value",
    [
        types.SimpleNamespace(lr=1),
        fractions.Fraction(1, 2),
        datetime.date(2022, 6, 1),
        Path("weights"),
        torch.nn.Linear(1, 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_other_class_than_namespace_is_let_in(
    value: object, state: State, tmp_path: Path
) -> None:
    assert "could run code" in refusal(saved(official_checkpoint(state, args=value), tmp_path))


def test_the_allow_list_calls_nothing_of_numpy_and_lasts_only_while_reading(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(torch.serialization.get_safe_globals())
    seen: list[Any] = []
    load = torch.load

    def observed(*args: Any, **options: Any) -> object:
        seen.extend(torch.serialization.get_safe_globals())
        assert options["weights_only"] is True
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", observed)
    read(saved(official_checkpoint(state), tmp_path))
    let_in = {one if isinstance(one, type) else one[0] for one in set(seen) - before}
    assert {one.__module__ for one in let_in} == {"argparse", "cmt.weight_files"}
    assert set(torch.serialization.get_safe_globals()) == before


# Files that claim more than they hold


def claiming(header: object, body: bytes, path: Path) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ({"a": {"dtype": "F32", "shape": [2**31, 2], "data_offsets": [0, 2**34]}}, b"1234"),
        ({"a": {"dtype": "F32", "shape": [2**63, 4], "data_offsets": [0, 4]}}, b"1234"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 0]}}, b"1234"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12345678"),
        ({"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
        ({"__metadata__": {"a": 1}}, b""),
        (b"[" * 100_000, b""),
        (b"\xff\xfe", b""),
    ],
)
def test_safetensors_with_a_lying_header_are_refused(
    header: object, body: bytes, tmp_path: Path
) -> None:
    assert "damaged" in refusal(claiming(header, body, tmp_path / "w.safetensors"), "ti")


def test_a_safetensors_header_of_ten_gigabytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 10 * 2**30) + b"{}")
    assert "damaged" in refusal(tmp_path / "w.safetensors", "ti")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_number_that_stands_for_ten_trillion_is_refused(
    dtype: torch.dtype, state: State, tmp_path: Path
) -> None:
    state["head.bias"] = torch.zeros(1, dtype=dtype).expand(10**13)
    assert "'head.bias' is larger than the file" in refusal(saved(state, tmp_path))


def test_a_compressed_archive_is_refused_unread(state: State, tmp_path: Path) -> None:
    state["head.bias"] = torch.zeros(10_000_000)
    with (
        zipfile.ZipFile(saved(state, tmp_path)) as stored,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    assert (tmp_path / "w.pth").stat().st_size < 1_000_000
    assert "claims to hold 40," in refusal(tmp_path / "w.pth")


def test_an_old_file_that_claims_ten_gigabytes_is_refused(state: State, tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"a": torch.zeros(0x1234)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"M\x34\x12") >= 1  # the number of elements in the pickle
    path.write_bytes(content.replace(b"M\x34\x12", b"J\x00\x00\x00\x70"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "damaged" in refusal(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kilobytes


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("kind", ["sparse", "csr", "meta"])
def test_tensors_without_plain_values_are_refused(kind: str, state: State, tmp_path: Path) -> None:
    state["head.bias"] = {
        "sparse": torch.eye(5).to_sparse(),
        "csr": torch.eye(5).to_sparse_csr(),
        "meta": torch.empty(5, device="meta"),
    }[kind]
    assert "'head.bias' has no plain values" in refusal(saved(state, tmp_path))


def numpy_values() -> list[Any]:
    return [
        np.float64(81.5),
        np.float32(0.5),
        np.int64(3),
        np.bool_(True),
        np.zeros((2, 3), np.uint8),
        np.str_("best"),
        np.dtype("float16"),
        np.array(["a", None], object),
        np.random.default_rng(0).standard_normal(3),
        np.random.get_state(),
    ]


@pytest.mark.parametrize("value", numpy_values(), ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("old_names", [False, True], ids=["numpy._core", "numpy.core"])
def test_numpy_values_beside_the_weights_do_not_matter(
    value: Any, old_names: bool, state: State, tmp_path: Path
) -> None:
    path = saved(official_checkpoint(state, best_acc=value), tmp_path)
    if old_names:
        rename_in_archive(path, b"numpy._core", b"numpy.core")
    assert_holds(load_model("tiny", path), state)


def rename_in_archive(path: Path, old: bytes, new: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        content = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data.replace(old, new) if name.endswith("data.pkl") else data)


def test_weights_that_are_numpy_arrays_are_refused(state: State, tmp_path: Path) -> None:
    content: dict[str, Any] = {**state, "head.bias": np.zeros(5, np.float32)}
    assert "'head.bias' is no tensor" in refusal(saved(content, tmp_path))


OFFICIAL_NAMES = ("head.weight", "relative_pos_a")


class OddTensor(Tensor):
    """A kind of tensor that is no plain one."""


def bits(dtype: torch.dtype) -> Tensor:
    return torch.zeros(40, dtype=torch.uint8).view(dtype)


ODD: dict[str, Callable[[], Tensor]] = {
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
    "per tensor": lambda: torch.quantize_per_tensor(torch.ones(5), 0.1, 0, torch.qint8),
    "per channel": lambda: torch.quantize_per_channel(
        torch.ones(5, 2), torch.ones(5), torch.zeros(5), 0, torch.quint8
    ),
    "bits8": lambda: bits(torch.bits8),
    "bits16": lambda: bits(torch.bits16),
    "float4": lambda: bits(torch.float4_e2m1fn_x2),
    "float8": lambda: bits(torch.float8_e5m2),
    "uint16": lambda: bits(torch.uint16),
    "complex": lambda: torch.zeros(5, dtype=torch.complex64),
    "bool": lambda: torch.zeros(5, dtype=torch.bool),
    "sparse": lambda: torch.eye(5).to_sparse(),
    "meta": lambda: torch.empty(5, device="meta"),
    "subclass": lambda: torch.zeros(5).as_subclass(OddTensor),
}
COUNTER = "stem_norm1.num_batches_tracked"


@pytest.mark.filterwarnings("ignore")  # torch has one of its own for most of these kinds
@pytest.mark.parametrize("name", ["head.bias", COUNTER])
@pytest.mark.parametrize("kind", ODD)
def test_odd_tensors_are_refused_in_a_line(
    kind: str, name: str, state: State, tmp_path: Path
) -> None:
    assert name in state
    state[name] = ODD[kind]()
    message = refusal(saved(state, tmp_path))
    assert f"'{name}' has" in message or "could run code" in message


@pytest.mark.parametrize("name", ["head.bias", COUNTER])
@pytest.mark.parametrize("method", ["numel", "element_size", "float", "to", "detach", "clone"])
def test_an_attribute_in_the_place_of_a_tensors_method_is_not_called(
    method: str, name: str, state: State, tmp_path: Path
) -> None:
    odd = state[name].clone()
    setattr(odd, method, 7)
    assert_holds(load_model("tiny", saved({**state, name: odd}, tmp_path)), state)


# Two readers


def test_an_archive_is_read_as_it_was_checked(state: State, tmp_path: Path) -> None:
    """With half an end record behind it, one reader found no archive and the other a large one."""
    state["head.bias"] = torch.zeros(50_000_000)
    path, packed = saved(state, tmp_path), tmp_path / "w.pth"
    with (
        zipfile.ZipFile(path) as stored,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for entry in stored.infolist():
            archive.writestr(entry.filename, stored.read(entry))
    content = packed.read_bytes()
    for tail in (b"PK\5\6", b"PK\5\6" + bytes(10), b"PK\5\6" + bytes(17), b"PK\6\6", bytes(70_000)):
        packed.write_bytes(content + tail)
        message = refusal(packed)
        assert "claims to hold" in message or "damaged" in message


def test_what_follows_an_honest_archive_is_no_other_archive(state: State, tmp_path: Path) -> None:
    path = saved(state, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content + b"x" * 100)
    assert_holds(load_model("tiny", path), state)
    for end in (b"PK\5\6", b"PK\5\6" + bytes(18)):  # half an end, and that of an empty archive
        path.write_bytes(content + end)
        assert "damaged" in refusal(path)


def test_two_files_of_a_name_are_refused(state: State, tmp_path: Path) -> None:
    path = saved(state, tmp_path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("weights/data.pkl", b"something else")
    assert "damaged" in refusal(path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("head.weight", (300_000, 0)),
        ("head.weight", (10**9, 0)),
        ("relative_pos_a", (1, 10**6, 0)),
        ("relative_pos_a", (0, 10**8, 1)),
        ("classifier.weight", (300_000, 0)),
        ("stage1.block_list.0.LMHSA.position_embeeding", (7_999, 0)),
    ],
)
@pytest.mark.parametrize("size", [None, 64])
def test_a_shape_without_values_takes_no_room(
    name: str, shape: tuple[int, ...], size: int | None, make_tiny: MakeTiny, tmp_path: Path
) -> None:
    state = to_public_layout(make_tiny("official" if name in OFFICIAL_NAMES else "flyegle"))
    assert name in state
    state[name] = torch.zeros(shape)
    bias = name.replace("weight", "bias")
    if bias in state and bias != name and shape[0] < 10**6:
        state[bias] = torch.zeros(shape[0])
    path = saved(state, tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = refusal(path, img_size=size)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes
    assert "do not fit" in message or "image size" in message or "cannot tell" in message
