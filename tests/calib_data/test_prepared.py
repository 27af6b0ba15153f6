"""Images prepared once: what cannot be decoded is left out, batches are filled up fairly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmt.calib_data.prepared import PreparedImages, open_prepared, prepare, spread
from cmt.calib_data.preprocessing import Preprocessing
from cmt.calib_data.sources import FolderImages
from cmt.errors import InputError

PREPROCESSING = Preprocessing((32, 32), (32, 32))


def make_folder(root: Path, count: int, name: str = "class") -> Path:
    for i in range(count):
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (10 * i, ord(name[0]), 0)).save(root / name / f"{i}.png")
    return root


def prepared(source: FolderImages, folder: Path, **options: object) -> PreparedImages:
    folder.mkdir()
    settings = {"count": None, "seed": 0, **options}
    prepare(source, PREPROCESSING, folder, **settings)  # type: ignore[arg-type]
    return open_prepared(folder, PREPROCESSING)


def test_prepared_pixels_are_those_of_the_preprocessing(tmp_path: Path) -> None:
    source = FolderImages(make_folder(tmp_path / "in", 5))
    images = prepared(source, tmp_path / "out")
    assert images.keys == [f"class/{i}.png" for i in range(5)]
    for i in range(5):
        np.testing.assert_array_equal(images.pixels[i], PREPROCESSING.apply(source.load(i)))
    assert images.labels is not None
    assert images.labels.tolist() == [0] * 5


def test_links_that_lead_nowhere_and_broken_files_are_skipped_and_listed(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in", 3)
    (root / "class" / "3.png").symlink_to(tmp_path / "gone.png")
    (root / "class" / "4.png").write_bytes(b"\x89PNG not really")
    source = FolderImages(root)
    source.fingerprint()
    images = prepared(source, tmp_path / "out")
    assert len(images) == 3
    assert images.available == 5
    assert [Path(line.split(":")[0]).name for line in images.skipped] == ["3.png", "4.png"]


def test_an_image_whose_metadata_trips_the_decoder_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FolderImages(make_folder(tmp_path / "in", 3))
    apply = Preprocessing.apply

    def trips(self: Preprocessing, image: Image.Image) -> np.ndarray:
        if np.asarray(image)[0, 0, 0] == 10:
            raise TypeError("required argument is not an integer")
        return apply(self, image)

    monkeypatch.setattr(Preprocessing, "apply", trips)
    images = prepared(source, tmp_path / "out")
    assert images.keys == ["class/0.png", "class/2.png"]
    assert images.skipped == ["class/1.png: required argument is not an integer"]


def test_what_could_not_be_read_is_said_with_its_first_names(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in", 3)
    for name in ("lost", "gone"):
        (root / name).mkdir()
        (root / name / "a.jpg").write_bytes(b"\xff\xd8\xffnothing")
    for i in range(5):
        exif = b"Exif\0\0broken"
        Image.new("RGB", (8, 8)).save(root / "class" / f"x{i}.jpg", exif=exif)
    images = prepared(FolderImages(root), tmp_path / "out")
    assert len(images) == 8
    assert list(images.lost_classes) == ["gone", "lost"]
    skipped, lost, unturned = images.remarks("validation")
    assert "2 validation image(s) could not be decoded" in skipped
    assert "gone/a.jpg" in skipped
    assert "2 class(es) could be decoded: gone, lost" in lost
    assert "5 validation image(s) have EXIF data that cannot be read" in unturned
    assert "class/x0.jpg, class/x1.jpg, class/x2.jpg and 2 more" in unturned
    whole = prepared(FolderImages(make_folder(tmp_path / "whole", 2)), tmp_path / "other")
    assert whole.remarks("validation") == []


def test_a_source_without_a_readable_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in" / "class").mkdir(parents=True)
    (tmp_path / "in" / "class" / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no image of"):
        prepared(FolderImages(tmp_path / "in"), tmp_path / "out")


def test_the_last_batch_is_filled_up_with_the_first_images(tmp_path: Path) -> None:
    images = prepared(FolderImages(make_folder(tmp_path / "in", 5)), tmp_path / "out")
    batches = list(images.batches(2))
    assert [batch.shape for batch in batches] == [(2, 3, 32, 32)] * 3
    np.testing.assert_array_equal(batches[2][1], batches[0][0])
    np.testing.assert_array_equal(batches[2][0], list(images.batches(1))[4][0])


def test_a_few_images_of_a_folder_are_of_all_its_classes(tmp_path: Path) -> None:
    for name in "abcd":
        make_folder(tmp_path / "in", 5, name)
    images = prepared(FolderImages(tmp_path / "in"), tmp_path / "out")
    assert images.labels is not None
    places = spread(len(images), 8)
    assert np.bincount(images.labels[places]).tolist() == [2, 2, 2, 2]
    fed = np.concatenate(list(images.batches(3, places)))
    every = np.concatenate(list(images.batches(1)))
    np.testing.assert_array_equal(fed[:8], every[places])
    np.testing.assert_array_equal(fed[8], every[places[0]])


def test_the_hash_tells_images_of_the_same_names_apart(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in", 3)
    first = prepared(FolderImages(root), tmp_path / "1").sha256
    assert prepared(FolderImages(root), tmp_path / "2").sha256 == first
    Image.new("RGB", (32, 32), "white").save(root / "class" / "1.png")
    assert prepared(FolderImages(root), tmp_path / "3").sha256 != first


def test_class_indices_are_translated_to_the_networks(tmp_path: Path) -> None:
    source = FolderImages(make_folder(tmp_path / "in", 2))
    images = prepared(source, tmp_path / "out", label_map={0: 7})
    assert images.labels is not None
    assert images.labels.tolist() == [7, 7]


def test_images_with_known_bytes_are_left_out(tmp_path: Path) -> None:
    pixels = np.arange(3, dtype=np.uint8).repeat(12).reshape(3, 2, 2, 3)
    labels = np.array([0, 1, 0])
    preprocessing = Preprocessing((2, 2), (2, 2))
    names, digests = ["a", "b", "c"], ["d1", "d2", "d3"]
    images = PreparedImages(pixels, labels, names, digests, [], 3, "three", preprocessing)
    rest = images.without(["d2", "d9"])
    assert (rest.keys, rest.digests, rest.labels.tolist()) == (["a", "c"], ["d1", "d3"], [0, 0])
    assert rest.pixels[:, 0, 0, 0].tolist() == [0, 2]
    assert images.without([]) is images


def test_what_was_clipped_by_a_stated_range_is_said(tmp_path: Path) -> None:
    image_range = (0.0, 4095.0)
    preprocessing = replace(PREPROCESSING, image_range=image_range)
    root = tmp_path / "in" / "class"
    root.mkdir(parents=True)
    values = np.full((32, 32), 2000, np.uint16)
    Image.fromarray(values).save(root / "a.png")
    values[:2, :3] = 5000
    Image.fromarray(values).save(root / "b.png")
    Image.new("L", (32, 32), 100).save(root / "c.png")
    (tmp_path / "out").mkdir()
    source = FolderImages(tmp_path / "in", image_range)
    prepare(source, preprocessing, tmp_path / "out", count=None, seed=0)
    images = open_prepared(tmp_path / "out", preprocessing)
    assert images.outside == {"class/a.png": 0, "class/b.png": 6}
    assert images.pixels[:, 9, 9, 0].tolist() == [125, 125, 100]
    (line,) = images.remarks("validation")
    assert line == (
        "1 of 2 validation image(s) read by --image-range 0,4095 have values outside of it, 6 in "
        "all, which were clipped: class/b.png"
    )


def test_a_range_that_was_for_no_image_is_said(tmp_path: Path) -> None:
    preprocessing = replace(PREPROCESSING, image_range=(0.0, 1.0))
    (tmp_path / "out").mkdir()
    source = FolderImages(make_folder(tmp_path / "in", 2), (0.0, 1.0))
    prepare(source, preprocessing, tmp_path / "out", count=None, seed=0)
    (line,) = open_prepared(tmp_path / "out", preprocessing).remarks("validation")
    assert line == ("no validation image was read by --image-range 0,1: all state their own scale")


def test_another_range_is_another_source(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in", 2)
    ranges = [None, (0.0, 1.0), (0.0, 2.0)]
    assert len({FolderImages(root, image_range).fingerprint() for image_range in ranges}) == 3
