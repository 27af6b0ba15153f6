"""Images read by other processes: the same as read here, whatever becomes of the processes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmt.calib_data import readers
from cmt.calib_data.preprocessing import Preprocessing
from cmt.calib_data.readers import Readers, read_lists
from cmt.calib_data.reading import ImageList, PixelsOnDemand, image_list, part, read_images
from cmt.calib_data.sources import FolderImages, ImageSource, bundled
from cmt.errors import MachineError

PREPROCESSING = Preprocessing((16, 24), (20, 30), image_range=(0.0, 4095.0))


def listed(source: ImageSource, places: range) -> ImageList:
    keys, digests = [source.key(i) for i in places], [source.digest(i) for i in places]
    return image_list(source.origin(), PREPROCESSING, keys, digests)


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    """Eight pictures: one broken, one with EXIF data that cannot be read, one of 12 bits, a link
    that leads nowhere."""
    folder, rng = tmp_path / "images" / "class", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(folder / f"{i}.png")
    (folder / "4.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    Image.new("RGB", (8, 8)).save(folder / "5.jpg", exif=b"Exif\0\0broken")
    Image.fromarray(np.full((30, 40), 5000, np.uint16)).save(folder / "6.png")
    (folder / "7.png").symlink_to(tmp_path / "gone.png")
    source = FolderImages(tmp_path / "images", PREPROCESSING.image_range)
    return listed(source, range(8))


def assert_same(found: Any, expected: Any) -> None:
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(found[name], value)
        else:
            assert found[name] == value, name


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PIECE", 3)


def test_a_list_is_found_again_from_its_json_and_says_what_it_could_not_read(
    images: ImageList,
) -> None:
    found = read_images(json.loads(json.dumps(images)))
    assert found["read"].tolist() == [0, 1, 2, 3, 5, 6]
    assert found["unturned"] == [5]
    assert found["outside"] == [(6, 30 * 40)]
    assert [Path(line.split(":")[0]).name for line in found["skipped"]] == ["4.jpg", "7.png"]
    source = FolderImages(Path(images["origin"]["folder"]), PREPROCESSING.image_range)
    for pixels, place in zip(found["pixels"], found["read"], strict=True):
        np.testing.assert_array_equal(pixels, PREPROCESSING.apply(source.load(place)))


def test_bundled_images_are_found_again_by_their_keys() -> None:
    source = bundled("validation")
    found = read_images(listed(source, range(7, 9)))
    for pixels, place in zip(found["pixels"], (7, 8), strict=True):
        np.testing.assert_array_equal(pixels, PREPROCESSING.apply(source.load(place)))


@pytest.mark.usefixtures("in_pieces")
def test_other_processes_read_what_is_read_here_in_the_order_of_the_lists(
    images: ImageList,
) -> None:
    lists = [images, part(images, [1, 5, 4]), part(images, [7])]
    for (asked, found), expected in zip(read_lists(lists, 2), lists, strict=True):
        assert asked == expected
        assert_same(found, read_images(expected))


@pytest.mark.usefixtures("in_pieces")
def test_a_killed_process_is_replaced_and_its_images_are_read_again(images: ImageList) -> None:
    with Readers(1) as some:
        found = some.map([images] * 4)
        assert_same(next(found)[1], read_images(images))
        some._processes[0].kill()
        for _, read in found:
            assert_same(read, read_images(images))
        assert len(some._processes) == 2
    assert all(process.poll() is not None for process in some._processes)


@pytest.mark.usefixtures("in_pieces")
def test_images_that_end_three_processes_are_named(
    images: ImageList, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen

    def dying(*given: Any, **more: Any) -> Any:
        process = start(*given, **more)
        process.kill()
        process.wait()
        return process

    monkeypatch.setattr(subprocess, "Popen", dying)
    with pytest.raises(MachineError, match=r"class/0.png to class/2.png ended .* 3 times"):
        list(read_lists([images], 1))


@pytest.mark.usefixtures("in_pieces")
def test_an_image_that_changes_after_it_was_listed_is_refused(images: ImageList) -> None:
    path = Path(images["origin"]["folder"]) / "class" / "2.png"
    path.write_bytes(path.read_bytes() + b"\0")
    for read in (lambda: read_images(images), lambda: list(read_lists([images], 1))):
        with pytest.raises(MachineError, match=r"class/2.png has changed since the start"):
            read()


def test_pixels_on_demand_are_those_of_the_images_and_refuse_one_that_is_gone(
    images: ImageList,
) -> None:
    readable = part(images, [0, 1, 2, 3])
    pixels = PixelsOnDemand(readable)
    expected = read_images(readable)["pixels"]
    np.testing.assert_array_equal(pixels[np.array([3, 0, 3])], expected[[3, 0, 3]])
    Path(images["origin"]["folder"], "class", "1.png").unlink()
    with pytest.raises(MachineError, match=r"class/1.png has changed"):
        pixels[np.array([1])]
