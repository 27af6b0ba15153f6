"""The bundled set, IDX files and image folders; drawing images from them."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import struct
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from cmt import InputError
from cmt.calib_data.limits import UnreadableImageError
from cmt.calib_data.sources import (
    BUNDLED,
    FASHION_LABELS,
    FolderImages,
    IdxImages,
    bundled,
    choose,
    list_hash,
    read_idx,
)

MakeImages = Callable[..., Path]


class Labelled:
    """A source of labels alone."""

    description = "labels"
    class_names: tuple[str, ...] = ()

    def __init__(self, labels: list[int] | None, count: int) -> None:
        self.labels: Sequence[int] | None = labels
        self.count = count

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return str(index)

    def load(self, index: int) -> Image.Image:
        raise NotImplementedError


# The bundled set


@pytest.mark.parametrize(("split", "count"), [("validation", 10_000), ("calibration", 1_024)])
def test_bundled_set_is_complete_and_balanced(split: str, count: int) -> None:
    source = bundled(split)
    assert len(source) == count
    assert source.pixels.shape == (count, 28, 28)
    assert source.class_names == FASHION_LABELS
    assert source.labels is not None
    per_class = Counter(source.labels)
    assert sorted(per_class) == list(range(10))
    assert max(per_class.values()) - min(per_class.values()) <= 1


def test_bundled_labels_belong_to_their_images() -> None:
    source = bundled("validation")
    # The published test set begins so.
    assert source.labels is not None
    first = [source.class_names[label] for label in source.labels[:6]]
    assert first == ["Ankle boot", "Pullover", "Trouser", "Trouser", "Shirt", "Trouser"]
    labels = np.asarray(source.labels)
    ink = {name: source.pixels[labels == i].mean() for i, name in enumerate(FASHION_LABELS)}
    assert ink["Sandal"] == min(ink.values())
    # Trousers are upright: empty left and right of the middle.
    trousers = source.pixels[labels == FASHION_LABELS.index("Trouser")].mean(0)
    assert trousers[:, :6].max() < trousers[:, 10:18].mean() / 4


def test_bundled_images_load_as_grey_pictures() -> None:
    source = bundled("calibration")
    image = source.load(3)
    assert (image.mode, image.size) == ("L", (28, 28))
    np.testing.assert_array_equal(np.asarray(image), source.pixels[3])
    assert source.key(3) == "calibration-images-idx3-ubyte.gz#3"


def test_validation_and_calibration_share_no_image() -> None:
    validation = {pixels.tobytes() for pixels in bundled("validation").pixels}
    calibration = {pixels.tobytes() for pixels in bundled("calibration").pixels}
    assert not validation & calibration


def test_bundled_files_are_small_and_come_with_their_licence() -> None:
    files = sorted(BUNDLED.glob("*.gz"))
    assert [path.name for path in files] == [
        "calibration-images-idx3-ubyte.gz",
        "calibration-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    ]
    assert sum(path.stat().st_size for path in files) < 6_000_000
    licence = (BUNDLED / "LICENSE").read_text()
    assert "MIT" in licence
    assert "Zalando" in licence


# IDX files


def idx(path: Path, shape: tuple[int, ...], body: bytes, magic: bytes = b"\0\0\x08") -> Path:
    header = magic + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    path.write_bytes(gzip.compress(header + body))
    return path


def test_idx_round_trip(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    read = read_idx(idx(tmp_path / "a.gz", (2, 3, 4), values.tobytes()))
    np.testing.assert_array_equal(read, values)
    assert read.dtype == np.uint8


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        ((2, 3, 4), bytes(23)),
        ((2, 3, 4), bytes(25)),
        ((2, 3, 4), b""),
        ((2**31, 2**31, 4), b""),
        ((2**31, 2**31, 5), b""),
        ((2**32 - 1, 28, 28), bytes(784)),
        ((0, 28, 28), b""),
        ((), b""),
        ((1,) * 255, b"1"),
        ((2**15, 2**15, 2**5), b""),
    ],
)
def test_idx_with_a_lying_header_is_refused(
    shape: tuple[int, ...], body: bytes, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"a\.gz"):
        read_idx(idx(tmp_path / "a.gz", shape, body))


def test_no_more_of_a_compressed_file_is_read_than_its_header_says(tmp_path: Path) -> None:
    content = b"\0\0\x08\x01" + struct.pack(">I", 3) + bytes(50_000_000)
    (tmp_path / "a.gz").write_bytes(gzip.compress(content, 1))
    del content
    tracemalloc.start()
    with pytest.raises(InputError, match="does not hold"):
        read_idx(tmp_path / "a.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("magic", [b"\0\0\x0d", b"\0\0\x09", b"\x01\0\x08", b"PNG"])
def test_idx_with_another_magic_is_refused(magic: bytes, tmp_path: Path) -> None:
    path = idx(tmp_path / "a.gz", (2,), bytes(2), magic)
    with pytest.raises(InputError, match="no IDX file"):
        read_idx(path)


@pytest.mark.parametrize("content", [b"", b"\0", b"\0\0\x08", b"\0\0\x08\x03", b"\0\0\x08\x03\0\0"])
def test_idx_cut_within_its_header_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match=r"a\.gz"):
        read_idx(tmp_path / "a.gz")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_gzip_is_refused(share: float, tmp_path: Path) -> None:
    content = (BUNDLED / "calibration-labels-idx1-ubyte.gz").read_bytes()
    (tmp_path / "a.gz").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match="copy it again"):
        read_idx(tmp_path / "a.gz")


@pytest.mark.parametrize("content", [b"plain text", b"\x1f\x8b\x08\0" + bytes(30)])
def test_what_is_no_gzip_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.gz"):
        read_idx(tmp_path / "a.gz")


def test_missing_idx_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_idx(tmp_path / "a.gz")


@pytest.mark.parametrize(
    ("shape", "labels"), [((3, 2, 2), [0, 1]), ((4, 3), [0] * 4), ((2, 2, 3), [0, 10])]
)
def test_images_and_labels_that_do_not_fit_are_refused(
    shape: tuple[int, ...], labels: list[int], tmp_path: Path
) -> None:
    images = idx(tmp_path / "images.gz", shape, bytes(12))
    with pytest.raises(InputError, match=r"labels\.gz"):
        IdxImages(images, idx(tmp_path / "labels.gz", (len(labels),), bytes(labels)), "x")


# Folders


def keys(source: FolderImages) -> list[str]:
    return [source.key(i) for i in range(len(source))]


def test_class_folders_in_sorted_order(make_images: MakeImages) -> None:
    root = make_images("dog/2.png", "cat/b.JPG", "cat/deep/a.png", "dog/1.webp", "ant/x.bmp")
    source = FolderImages(root)
    assert source.class_names == ("ant", "cat", "dog")
    assert keys(source) == ["ant/x.bmp", "cat/b.JPG", "cat/deep/a.png", "dog/1.webp", "dog/2.png"]
    assert source.labels == [0, 1, 1, 2, 2]
    assert source.description == str(root)


def test_flat_folder_has_no_classes(make_images: MakeImages) -> None:
    source = FolderImages(make_images("b.png", "a.jpg"))
    assert source.class_names == ()
    assert source.labels is None
    assert keys(source) == ["a.jpg", "b.png"]


def test_where_there_are_class_folders_loose_images_do_not_count(make_images: MakeImages) -> None:
    source = FolderImages(make_images("cat/a.png", "loose.png"))
    assert keys(source) == ["cat/a.png"]
    assert source.class_names == ("cat",)


def test_other_files_do_not_count(make_images: MakeImages) -> None:
    root = make_images("cat/a.png")
    (root / "cat" / "labels.csv").write_text("a")
    (root / "cat" / "a.png.part").write_bytes(b"x")
    assert keys(FolderImages(root)) == ["cat/a.png"]


def test_hidden_files_and_folders_do_not_count(make_images: MakeImages) -> None:
    root = make_images("cat/a.png", "cat/.b.png", "cat/.thumbs/c.png", ".cache/d.png")
    (root / "cat" / "._a.png").write_bytes(b"resource fork")
    source = FolderImages(root)
    assert source.class_names == ("cat",)
    assert keys(source) == ["cat/a.png"]
    flat = FolderImages(make_images("a.png", ".hidden/b.png", ".c.png", root="flat"))
    assert keys(flat) == ["a.png"]


def test_an_empty_class_folder_keeps_its_index(make_images: MakeImages) -> None:
    root = make_images("ant/a.png", "cat/a.png")
    (root / "bee").mkdir()
    source = FolderImages(root)
    assert source.class_names == ("ant", "bee", "cat")
    assert source.labels == [0, 2]


def test_folder_links_that_loop_add_nothing(make_images: MakeImages) -> None:
    root = make_images("cat/a.png", "dog/b.png")
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "up").symlink_to(root.parent, target_is_directory=True)
    (root / "self").symlink_to(root / "self", target_is_directory=True)
    (root / "cat" / "loop").symlink_to(root / "cat", target_is_directory=True)
    source = FolderImages(root)
    assert source.class_names == ("cat", "dog")
    assert keys(source) == ["cat/a.png", "dog/b.png"]


def test_a_class_folder_may_be_a_link(make_images: MakeImages) -> None:
    elsewhere = make_images("a.png", root="elsewhere")
    root = make_images("cat/a.png")
    (root / "dog").symlink_to(elsewhere, target_is_directory=True)
    assert keys(FolderImages(root)) == ["cat/a.png", "dog/a.png"]


def test_empty_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="no images in"):
        FolderImages(tmp_path)


@pytest.mark.parametrize("name", ["missing", "file.png"])
def test_what_is_no_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file.png").touch()
    with pytest.raises(InputError, match="no image folder"):
        FolderImages(tmp_path / name)


def test_loaded_images_outlive_their_file(make_images: MakeImages) -> None:
    root = make_images("a.png", size=(7, 5))
    source = FolderImages(root)
    image = source.load(0)
    (root / "a.png").unlink()
    assert image.size == (7, 5)
    assert np.asarray(image).shape == (5, 7, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tif", "bmp"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.6])
def test_cut_images_are_reported_as_unreadable(
    suffix: str, share: float, make_images: MakeImages
) -> None:
    root = make_images(f"a.{suffix}", size=(64, 64))
    path = root / f"a.{suffix}"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UnreadableImageError, match=f"a.{suffix}"):
        FolderImages(root).load(0)


def test_text_under_an_image_name_is_reported_as_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("404 not found")
    with pytest.raises(UnreadableImageError, match=r"a\.jpg"):
        FolderImages(tmp_path).load(0)


def test_an_image_that_vanished_is_reported_as_unreadable(make_images: MakeImages) -> None:
    root = make_images("a.png")
    source = FolderImages(root)
    (root / "a.png").unlink()
    with pytest.raises(UnreadableImageError):
        source.load(0)


def test_a_decompression_bomb_is_reported_as_unreadable(
    make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FolderImages(make_images("a.png", size=(64, 64)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImageError, match="bomb"):
        source.load(0)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_an_image_name_gives_no_program_anything_to_run(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pillow tells formats by their content and hands PostScript to Ghostscript.
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (4, 4)).save(images / f"a.{suffix}", "EPS")
    with pytest.raises(OSError, match="identify"), Image.open(images / f"a.{suffix}") as image:
        image.load()
    assert (tmp_path / "ran").exists(), "the trap must work where nothing stops it"
    (tmp_path / "ran").unlink()
    with pytest.raises(UnreadableImageError):
        FolderImages(images).load(0)
    assert not (tmp_path / "ran").exists()


def test_pipes_under_an_image_name_do_not_count(make_images: MakeImages) -> None:
    root = make_images("a.png")
    os.mkfifo(root / "b.png")
    assert keys(FolderImages(root)) == ["a.png"]


def test_a_class_folder_that_no_manifest_can_name_is_refused(make_images: MakeImages) -> None:
    root = make_images("cat/a.png")
    (root / "cat").rename(root / os.fsdecode(b"caf\xe9"))
    with pytest.raises(InputError, match="rename"):
        FolderImages(root)


def test_of_an_animation_the_first_picture_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "green", "blue")]
    for suffix in ("gif", "webp", "png", "tif"):
        options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
        path = tmp_path / f"a.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    source = FolderImages(tmp_path)
    assert len(source) == 4
    for i in range(4):
        assert (
            np.asarray(source.load(i).convert("RGB")).reshape(-1, 3).tolist() == [[255, 0, 0]] * 30
        )


def test_an_image_of_thirty_thousand_pixels_is_read_without_a_warning(tmp_path: Path) -> None:
    Image.new("1", (30_000, 3_000)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert FolderImages(tmp_path).load(0).size == (30_000, 3_000)


# Drawing


def test_drawing_is_even_over_the_classes() -> None:
    labels = [0] * 500 + [1] * 50 + [2] * 450
    chosen = choose(Labelled(labels, 1000), 90, seed=3)
    assert Counter(labels[i] for i in chosen) == {0: 30, 1: 30, 2: 30}


def test_a_class_that_runs_out_leaves_its_share_to_the_others() -> None:
    labels = [0] * 500 + [1] * 4 + [2] * 500
    chosen = choose(Labelled(labels, 1004), 100, seed=3)
    assert Counter(labels[i] for i in chosen) == {0: 48, 1: 4, 2: 48}


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    small=st.integers(1, 70),
    more=st.integers(0, 30),
    seed=st.integers(0, 5),
    known=st.booleans(),
)
def test_draws_are_sorted_distinct_repeatable_and_nested(
    labels: list[int], small: int, more: int, seed: int, known: bool
) -> None:
    source = Labelled(labels if known else None, len(labels))
    chosen = choose(source, small, seed).tolist()
    assert len(chosen) == min(small, len(labels))
    assert chosen == sorted(set(chosen))
    assert chosen == choose(source, small, seed).tolist()
    assert set(chosen) <= set(choose(source, small + more, seed).tolist())


def test_the_seed_decides_which_images_are_drawn() -> None:
    source = bundled("validation")
    draws = {tuple(choose(source, 20, seed)) for seed in range(5)}
    assert len(draws) == 5
    assert tuple(choose(source, 20, 0)) in draws


@pytest.mark.parametrize("count", [None, 7, 8])
def test_everything_is_taken_where_the_count_allows(count: int | None) -> None:
    assert choose(Labelled([1] * 7, 7), count, 0).tolist() == list(range(7))


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_below_one_is_refused(count: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        choose(Labelled(None, 5), count, 0)


def test_list_hash_knows_names_and_their_order() -> None:
    hashes = {list_hash(names) for names in ([], ["a"], ["a", "b"], ["b", "a"], ["ab"], ["a", "B"])}
    assert len(hashes) == 6
    assert list_hash(["a", "é"]) == hashlib.sha256("a\né".encode()).hexdigest()


def test_file_names_that_are_not_utf8_can_be_hashed(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        Image.new("L", (2, 2)).save(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    source = FolderImages(tmp_path)
    assert list_hash(keys(source)) == list_hash([name])


def test_fingerprint_changes_when_an_image_is_rewritten_or_added(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    first = FolderImages(tmp_path).fingerprint()
    assert FolderImages(tmp_path).fingerprint() == first
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    second = FolderImages(tmp_path).fingerprint()
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    assert len({first, second, FolderImages(tmp_path).fingerprint()}) == 3


def test_a_folder_that_may_not_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cat").mkdir()
    scan = os.scandir

    def deny(path: object) -> object:  # the superuser may read everything
        if str(path).endswith("cat"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(InputError, match=r"cat \(Permission denied\): correct its permissions"):
        FolderImages(tmp_path)
