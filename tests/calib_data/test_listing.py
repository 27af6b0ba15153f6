"""Which files of a folder are used as images, and that nothing else goes without a word."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cmt.calib_data.sources import FolderImages
from cmt.errors import InputError

MakeImages = Callable[..., Path]
NAMES = [
    "a.jfif",
    "b.jpe",
    "c.JPEG",
    "d",
    "e.dat",
    "f.PNG",
    "g.jpg.bak",
    "h.txt",
    "i.webp",
    "j.heic",
]


def keys(source: FolderImages) -> list[str]:
    return [source.key(i) for i in range(len(source))]


def save(path: Path, kind: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), "red").save(path, kind)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_images_are_told_by_content_whatever_their_names(kind: str, tmp_path: Path) -> None:
    for name in NAMES:
        save(tmp_path / "cat" / name, kind)
    source = FolderImages(tmp_path)
    assert keys(source) == [f"cat/{name}" for name in sorted(NAMES)]
    assert all(source.load(i).size == (6, 4) for i in range(len(source)))
    assert (source.left_out, source.remarks) == (0, [])


def test_avif_is_read_or_said_where_pillow_reads_none(tmp_path: Path) -> None:
    from PIL import features

    if not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    save(tmp_path / "cat" / "a.avif", "AVIF")
    save(tmp_path / "cat" / "b", "AVIF")
    source = FolderImages(tmp_path)
    assert [source.load(i).size for i in range(len(source))] == [(6, 4)] * 2


@pytest.mark.parametrize(
    "content",
    [b"", b"a,b\n1,2\n", b"%PDF-1.7\n" * 3, b"%!PS-Adobe-3.0\n" * 3, b"\0\0\0\x18ftypheic\0\0\0\0"],
)
def test_what_is_no_image_is_counted_and_named(
    content: bytes, make_images: MakeImages, tmp_path: Path
) -> None:
    root = make_images("cat/a.png")
    for i in range(5):
        (root / "cat" / f"x{i}").write_bytes(content)
    source = FolderImages(root)
    assert keys(source) == ["cat/a.png"]
    assert source.left_out == 5
    (line,) = source.remarks
    assert "5 left out" in line
    assert "cat/x0, cat/x1, cat/x2 and 2 more" in line


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "@eadir", "__MACOSX", "#recycle", ".thumbnails", "$RECYCLE.BIN", "lost+found"],
)
@pytest.mark.parametrize("below", ["", "cat", "cat/deep"])
def test_folders_of_systems_are_no_classes_and_no_images(
    name: str, below: str, make_images: MakeImages
) -> None:
    root = make_images("cat/a.png", "dog/b.png")
    save(root / below / name / "a.png" / "SYNOPHOTO_THUMB_M.png")
    source = FolderImages(root)
    assert (source.class_names, keys(source)) == (("cat", "dog"), ["cat/a.png", "dog/b.png"])
    assert source.left_out == 1
    assert name in source.remarks[0]


@pytest.mark.parametrize(
    "name",
    ["Thumbs.db", "THUMBS.DB", ".DS_Store", "._a.png", "desktop.ini", "SYNOFILE_THUMB_M.png"],
)
def test_files_of_systems_are_no_images_whatever_they_hold(
    name: str, make_images: MakeImages
) -> None:
    root = make_images("cat/a.png")
    save(root / "cat" / name)
    source = FolderImages(root)
    assert keys(source) == ["cat/a.png"]
    assert name in source.remarks[0]


def test_linked_folders_are_followed_once(make_images: MakeImages) -> None:
    elsewhere = make_images("b.png", "deeper/c.png", root="elsewhere")
    root = make_images("cat/a.png")
    (root / "cat" / "more").symlink_to(elsewhere, target_is_directory=True)
    (root / "cat" / "twice").symlink_to(elsewhere, target_is_directory=True)
    source = FolderImages(root)
    assert keys(source) == ["cat/a.png", "cat/more/b.png", "cat/more/deeper/c.png"]
    assert source.left_out == 1
    assert "cat/twice" in source.remarks[0]


@pytest.mark.parametrize("target", [".", "..", "../..", "/"])
def test_links_that_lead_back_are_said(target: str, make_images: MakeImages) -> None:
    root = make_images("cat/a.png", "dog/b.png", root="sets/mine")
    (root / "cat" / "loop").symlink_to(target, target_is_directory=True)
    source = FolderImages(root)
    assert keys(source) == ["cat/a.png", "dog/b.png"]
    assert "cat/loop" in source.remarks[0]


def test_pipes_and_dead_links_are_said(make_images: MakeImages) -> None:
    root = make_images("cat/a.png")
    os.mkfifo(root / "cat" / "b.png")
    (root / "cat" / "notes").symlink_to(root / "gone")
    source = FolderImages(root)
    assert keys(source) == ["cat/a.png"]
    assert source.left_out == 2
    assert len(source.remarks) == 2


def test_loose_images_beside_class_folders_are_said(make_images: MakeImages) -> None:
    source = FolderImages(make_images("cat/a.png", "loose.png", "other.jpg"))
    assert source.left_out == 2
    assert "loose.png, other.jpg" in source.remarks[0]


def test_class_folders_without_an_image_are_said(make_images: MakeImages) -> None:
    root = make_images("cat/a.png")
    (root / "ant").mkdir()
    (root / "bee").mkdir()
    (root / "bee" / "list.txt").write_text("nothing")
    source = FolderImages(root)
    assert source.class_names == ("ant", "bee", "cat")
    assert any("2 class folder(s) without an image: ant, bee" in line for line in source.remarks)


def test_a_folder_without_images_is_refused_with_what_was_seen(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(InputError, match=r"no images in .*1 left out.*a\.csv"):
        FolderImages(tmp_path)


def test_paths_that_are_not_utf8_are_read_and_shown(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"caf\xe9")
    save(root / "cat" / os.fsdecode(b"\xff.png"))
    (root / "cat" / os.fsdecode(b"b\xe9.png")).write_bytes(b"nothing")
    (root / "cat" / os.fsdecode(b"c\xe9.txt")).write_bytes(b"nothing")
    source = FolderImages(root)
    assert len(source) == 2
    shown = [source.description, *source.remarks]
    for i in range(2):
        try:
            assert source.load(i).size == (6, 4)
        except Exception as error:
            shown.append(str(error))
    assert len(shown) == 3
    for text in shown:
        text.encode()
