"""A bundle in use from Python, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cmt
from cmt.bundle import classifier as module
from cmt.bundle.reader import open_bundle
from cmt.bundle.running import load
from cmt.errors import InputError

Rewrite = Callable[..., None]


@pytest.fixture
def photo(stored: Path) -> Path:
    return stored / "golden" / "photo.jpg"


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (50 + i, 60, 3), np.uint8) for i in range(count)]


def test_every_kind_of_image_gives_the_same_classes(stored: Path, photo: Path) -> None:
    with cmt.Classifier(stored, threads=1) as classifier:
        found = classifier.classify(photo)
        assert [one.label for one in found] == ["blue", "red"]
        assert sum(one.probability for one in found) == pytest.approx(1)
        assert found[0].score > found[1].score
        assert classifier.classify(str(photo)) == found
        assert classifier.classify(photo.read_bytes()) == found
        with Image.open(photo) as picture:
            assert classifier.classify(picture) == found
        pixels = pictures(1)[0]
        (of_array,) = classifier.classify(pixels[None])
        assert of_array == classifier.classify(pixels)
        assert of_array == classifier.classify(Image.fromarray(pixels))
        grey = classifier.classify(pixels[..., 0])
        assert grey == classifier.classify(np.stack([pixels[..., 0]] * 3, axis=-1))


def test_an_images_classes_do_not_depend_on_its_batch(stored: Path) -> None:
    images = pictures(7)
    with cmt.Classifier(stored, threads=1) as classifier:
        together = classifier.classify(images)
        assert together == [classifier.classify(image) for image in images]
        assert classifier.classify([]) == []
        (scores,) = classifier.outputs(images)
    assert scores.shape == (7, 2)
    best = [one[0] for one in together]
    np.testing.assert_array_equal([one.index for one in best], scores.argmax(1))
    np.testing.assert_array_equal([one.score for one in best], scores.max(1))


def test_of_equal_classes_the_first_comes_first_and_top_cuts(stored: Path, photo: Path) -> None:
    with cmt.Classifier(stored) as classifier:
        assert [one.index for one in classifier._best(np.zeros(2, np.float32), 5)] == [0, 1]
        assert len(classifier.classify(photo, top=1)) == 1
        with pytest.raises(InputError, match="top must be at least 1"):
            classifier.classify(photo, top=0)


def test_shares_answer_alike_from_many_threads(stored: Path) -> None:
    images = pictures(4)
    with cmt.Classifier(stored, threads=1) as first:
        expected = first.classify(images)
        shared = [first.share() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: [one.classify(images) for _ in range(5)], shared))
    assert found == [[expected] * 5] * 4
    with pytest.raises(InputError, match="closed"):
        first.classify(images)


def test_a_runner_for_one_caller_is_loaded_for_each(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[object] = []

    def count(*arguments: Any) -> Any:
        loaded.append(load(*arguments))
        return loaded[-1]

    monkeypatch.setattr(module, "load", count)
    row = module.TARGETS["openvino"]
    one_caller = type(row)(**{**vars(row), "one_caller": True})
    with cmt.Classifier(stored) as classifier:
        classifier.share()
        assert len(loaded) == 1
        monkeypatch.setitem(module.TARGETS, "openvino", one_caller)
        classifier.share()
    assert len(loaded) == 2


def test_the_file_that_is_asked_for_runs(stored: Path, photo: Path) -> None:
    names = {
        None: "openvino/",
        "int8": "openvino/",
        "openvino/int8": "openvino/",
        "onnxruntime/int8": "onnxruntime/",
    }
    for file, folder in names.items():
        with cmt.Classifier(stored, file) as classifier:
            assert classifier.artefact.startswith(folder)
            assert classifier.classify(photo)[0].label == "blue"
    with pytest.raises(InputError, match=r"has no 'fp32'; this machine can run openvino/int8, onn"):
        cmt.Classifier(stored, "fp32")


def test_threads_that_are_asked_for_come_before_tuned_ones(stored: Path, rewrite: Rewrite) -> None:
    def tune(manifest: dict[str, Any]) -> None:
        for artefact in manifest["artefacts"]:
            if artefact["target"] == "openvino" and "settings" in artefact:
                artefact["settings"]["INFERENCE_NUM_THREADS"] = 1

    rewrite(stored, tune)
    for threads, expected in ((None, 1), (2, 2)):
        runner: Any = cmt.Classifier(stored, "openvino/int8", threads=threads)._runner
        assert runner.compiled()["settings"]["INFERENCE_NUM_THREADS"] == expected


def test_what_was_compiled_is_kept_for_the_next_start_and_answers_alike(
    stored: Path, photo: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with cmt.Classifier(stored, "openvino/int8", threads=1) as classifier:
        expected = classifier.classify(photo)
    for _ in range(2):
        with cmt.Classifier(stored, "openvino/int8", threads=1, cache=cache) as classifier:
            assert classifier.classify(photo) == expected
    (kept,) = cache.glob("*.blob")
    kept.write_bytes(kept.read_bytes()[: kept.stat().st_size // 2])
    with cmt.Classifier(stored, "openvino/int8", threads=1, cache=cache) as classifier:
        assert classifier.classify(photo) == expected
    (tmp_path / "file").touch()
    with cmt.Classifier(stored, "openvino/int8", cache=tmp_path / "file") as classifier:
        assert classifier.classify(photo)[0].label == "blue"


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("missing.jpg", "missing.jpg: "),
        (np.zeros((4, 4, 3), np.float32), "float32 (4, 4, 3) is no image: give uint8"),
        (np.zeros((4, 4, 4), np.uint8), "uint8 (4, 4, 4) is no image"),
        (np.zeros((0, 4, 3), np.uint8), "is no image"),
        (7, "is no image"),
        (b"no picture", "an image: it is no JPEG or PNG file"),
    ],
)
def test_what_is_no_image_is_refused_in_a_line(image: Any, said: str, stored: Path) -> None:
    with cmt.Classifier(stored) as classifier, pytest.raises(InputError) as refused:
        classifier.classify(image)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threads": 0}, "threads must be from 1"),
        ({"device": "GPU"}, "not on GPU"),
        ({"trust": "no.pem"}, "not signed|no public|pip install"),
    ],
)
def test_options_that_cannot_be_kept_are_refused(
    options: dict[str, Any], said: str, stored: Path
) -> None:
    with pytest.raises(InputError, match=said):
        cmt.Classifier(stored, **options)


def test_a_bundle_is_not_believed(stored: Path, photo: Path, rewrite: Rewrite) -> None:
    rewrite(stored, lambda manifest: manifest["labels"].append("third"))
    with pytest.raises(InputError, match="one number for each label"):
        cmt.Classifier(stored).classify(photo)
    (stored / "manifest.json.sha256").write_text("0")
    with pytest.raises(InputError, match=r"manifest\.json is not the file of this bundle"):
        cmt.Classifier(stored)


def test_feature_maps_are_outputs_and_no_classes(stored: Path, photo: Path) -> None:
    bundle = open_bundle(stored)
    bundle.manifest["outputs"] *= 4
    with cmt.Classifier(bundle) as classifier:
        with pytest.raises(InputError, match=r"gives feature maps.*call outputs"):
            classifier.classify(photo)
        maps = [np.zeros((len(pictures(3)), 8, side, side), np.float32) for side in (8, 4, 2, 1)]
        classifier._runner = lambda _: maps
        found = classifier.outputs(photo)
    assert [one.shape for one in found] == [(1, 8, side, side) for side in (8, 4, 2, 1)]


def test_values_outside_of_the_range_are_counted(
    stored: Path, rewrite: Rewrite, tmp_path: Path
) -> None:
    rewrite(stored, lambda manifest: manifest["input"].update(image_range=[0, 1000]))
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((40, 40), 2000, np.uint16)).save(deep)
    with cmt.Classifier(stored) as classifier, pytest.warns(UserWarning, match="1600 values"):
        classifier.classify(deep)


def start(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`cmt-classify` in a process that says at its end which heavy packages it imported."""
    program = (
        "import atexit, sys; from cmt.commands.main import run\n"
        "heavy = ('torch', 'onnx', 'nncf', 'matplotlib')\n"
        "atexit.register(lambda: print('imported', *(n for n in heavy if n in sys.modules)))\n"
        "run('cmt-classify')"
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_answers_without_torch(stored: Path, photo: Path) -> None:
    result = start(stored, photo, "--json")
    assert result.returncode == 0, result.stderr
    line, imported = result.stdout.splitlines()
    assert imported.split() == ["imported"]
    with cmt.Classifier(stored) as classifier:
        expected = classifier.classify(photo)
    assert json.loads(line)["image"] == str(photo)
    for ours, theirs in zip(json.loads(line)["classes"], expected, strict=True):
        assert ours == pytest.approx(vars(theirs))


def test_the_command_says_what_it_leaves_out_of_a_folder(stored: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, image in enumerate(pictures(2)):
        Image.fromarray(image).save(photos / f"{i}.png")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (photos / "notes.txt").write_text("no picture either")
    result = start(stored, photos, "--top", 1)
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("/")] == [
        str(photos / "0.png"),
        str(photos / "1.png"),
    ]
    assert "1 left out (no image of a kind that is read): notes.txt" in result.stderr
    assert "warning: left out: " in result.stderr
    assert "1 of 3 images were left out" in result.stderr
    result = start(stored, photos / "broken.jpg")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(f"cmt-classify: {photos / 'broken.jpg'}: ")
