"""Accuracy where the files run: beside torch's answers, without torch, on any images."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmt.bundle.reader import open_bundle
from cmt.bundle.torch_answers import read_answers
from cmt.bundle.writer import describe_file, write_manifest
from cmt.calib_data.sources import FolderImages
from cmt.errors import GateError, InputError
from cmt.export.pipeline import Bundle
from cmt.measure import on_device
from cmt.measure.device_rows import Images, Measured, measure_accuracy
from cmt.measure.on_device import File, Seen, ask, choose
from cmt.measure.progress import ProgressBars
from cmt.report.document import report_of
from cmt.targets.registry import not_runnable

LOAD = on_device._load
QUICK = ("--seconds", "0.05", "--threads", "1")
WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "nncf", "safetensors"):
            raise ImportError(f"{name} is not in the base install")

sys.meta_path.insert(0, Refuse())
from cmt.commands.main import run
run("cmt-bench")
"""


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return shutil.copytree(bundle.path, tmp_path / "copy")


def reseal(folder: Path, change: Any) -> None:
    """Torch's answers changed, and all hashes made anew."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest["answers"])
    for name in ("images", "classes", "logits"):
        path = folder / manifest["answers"][name]["path"]
        manifest["answers"][name] = describe_file(folder, path)
    write_manifest(folder, manifest)


def measured(folder: Path, images: Path, count: int | None = None) -> Measured:
    """All files of the CPU's runtimes, asked in this process."""
    bundle = open_bundle(folder)
    batch = bundle.manifest["input"]["shape"][0]
    files = [
        File(artefact, None, artefact["settings"], batch)
        for artefact in bundle.artefacts
        if not_runnable(artefact) is None
    ]
    source = Images(FolderImages(images), count)
    with ProgressBars(False) as progress:
        return measure_accuracy(bundle, source, files, 1, progress.task)


def test_every_files_figures_are_the_exports_to_the_image_without_torch(
    copy: Path, bundle: Bundle, photos: Path
) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, copy, *QUICK, "--val-data", photos]
    command += ["--batch", "3", "--batch", "2"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "broken.jpg" in result.stderr
    assert "openvino int8, answering on " in result.stdout
    entry = report_of(open_bundle(copy))["machines"][0]
    assert entry["images"]["images"] == 20
    assert entry["images"]["skipped"] == 1
    exported = {row["artefact"]: row for row in bundle.report["results"]}
    first = [row for row in entry["results"] if row["settings"]["batch"] == 3]
    rows = {row["artefact"]: row for row in first if row["measured_by"]}
    assert {row["target"] for row in rows.values()} == {"openvino", "onnxruntime"}
    for path, row in rows.items():
        assert row["accuracy"] == exported[path]["accuracy"]
        assert row["changes"] == exported[path]["changes"]
        assert row["beside_torch"]["images"] == 20
        limit = {"fp32": 1e-4, "fp16": 5e-2, "int8": 1.0}[row["precision"]]
        assert row["beside_torch"]["max_rel"] < limit
    page = (copy / "report.md").read_text()
    assert "The drop at the export was 0.00 points: 0.00 points apart." in page
    smaller = [row for row in entry["results"] if row["settings"]["batch"] == 2]
    assert smaller
    for row in smaller:
        assert row["accuracy"] is None


def test_images_that_torch_answered_otherwise_count_as_lost_and_gained(
    copy: Path, photos: Path
) -> None:
    """Torch's first two classes exchanged for five images of each folder."""
    before = read_answers(open_bundle(copy))
    names = {FolderImages(photos).digest(i): FolderImages(photos).key(i) for i in range(21)}
    turned = [bytes.fromhex(digest) for digest, key in names.items() if key[-5] in "01234"]

    def change(_: Any) -> None:
        classes = np.load(copy / "answers" / "classes.npy")
        for digest in turned:
            row = before.rows.get(digest)
            if row is not None:
                classes[row] = classes[row, ::-1]
        np.save(copy / "answers" / "classes.npy", classes)

    reseal(copy, change)
    for row in measured(copy, photos).rows.values():
        assert row["accuracy"] is not None
        assert row["accuracy"]["agreement"] == 0.5
        assert row["beside_torch"]["agreement"] == 0.5
        # One class is always answered: five of its images were torch's errors, five its hits.
        assert (row["changes"]["lost"], row["changes"]["gained"]) == (5, 5)
        assert row["accuracy"]["drop_pp"] == 0
        assert len(row["changes"]["images"]) == 8


def test_images_that_torch_did_not_answer_are_held_against_the_fp32_file(
    copy: Path, photos: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(photos, tmp_path / "images")
    for i in range(4):
        pixels = np.full((50, 60, 3), 40 * i, np.uint8)
        Image.fromarray(pixels).save(folder / "blue" / f"new{i}.jpg")
    found = measured(copy, folder)
    assert (found.images["images"], found.images["unknown"]) == (24, 4)
    for name, row in found.rows.items():
        assert row["accuracy"] is not None
        assert row["accuracy"]["images"] == 20
        assert row["unknown_images"]["images"] == 4
        assert row["unknown_images"]["top1"] in (0, 25, 50, 75, 100)
        assert "int8" in name or row["unknown_images"]["agreement"] == 1


def test_a_bundle_of_before_has_top1_alone(stored: Path, photos: Path) -> None:
    for row in measured(stored, photos).rows.values():
        assert row["accuracy"] is not None
        assert row["accuracy"]["images"] == 20
        assert row["accuracy"]["drop_pp"] is None
        assert row["unknown_images"] == {
            "images": 20,
            "top1": row["accuracy"]["top1"],
            "agreement": None,  # it has no FP32 file
        }


def test_images_without_classes_have_torchs_answers_beside_them(copy: Path, photos: Path) -> None:
    for row in measured(copy, photos / "blue").rows.values():
        assert row["accuracy"] is None
        assert row["reasons"]["accuracy"] == "the images are in no class folders"
        assert row["beside_torch"]["images"] == 10


def test_a_subset_is_of_torchs_images_first_and_of_all_classes(
    copy: Path, photos: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(photos, tmp_path / "images")
    for i in range(4):
        Image.fromarray(np.full((50, 60, 3), 40 * i, np.uint8)).save(folder / "blue" / f"a{i}.png")
    source, answers = FolderImages(folder), read_answers(open_bundle(copy))
    chosen = [list(choose(source, count, answers)) for count in (6, 20, 22)]
    keys = [[source.key(i) for i in places] for places in chosen]
    assert [key.split("/")[0] for key in keys[0]] == ["blue"] * 3 + ["red"] * 3
    assert {*keys[0]} < {*keys[1]} < {*keys[2]}
    assert set(keys[1]) == {*map(FolderImages(photos).key, range(21))} - {"red/broken.jpg"}
    found = measured(copy, folder, 20)
    assert (found.images["images"], found.images["unknown"]) == (20, 0)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("green", "'green', which is no class"), ("Red", "'Red', which is no class")],
)
def test_a_folder_of_no_class_is_refused(
    copy: Path, photos: Path, tmp_path: Path, name: str, problem: str
) -> None:
    shutil.copytree(photos, tmp_path / "images")
    (tmp_path / "images" / "red").rename(tmp_path / "images" / name)
    with pytest.raises(InputError, match=problem):
        measured(copy, tmp_path / "images")


def test_answers_that_do_not_belong_together_are_refused(copy: Path, photos: Path) -> None:
    reseal(copy, lambda _: np.save(copy / "answers" / "classes.npy", np.zeros((3, 2), np.int32)))
    with pytest.raises(InputError, match="do not belong together"):
        measured(copy, photos)


def test_answers_for_other_classes_are_refused(copy: Path, photos: Path) -> None:
    reseal(
        copy,
        lambda _: np.save(copy / "answers" / "classes.npy", np.full((20, 2), 7, np.int32)),
    )
    with pytest.raises(InputError, match="does not answer for the bundle's classes"):
        measured(copy, photos)


def seen_of(folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, answer: Any) -> Seen:
    """One file asked in shards of eight, its answers through `answer`."""
    bundle = open_bundle(folder)
    (artefact,) = [a for a in bundle.artefacts if a["path"] == "openvino/cmt_tiny.fp32.xml"]
    monkeypatch.setattr(on_device, "SHARD", 8)
    monkeypatch.setattr(on_device, "_load", lambda *given: answer(LOAD(*given)))
    file = File(artefact, None, artefact["settings"], 3)
    with ProgressBars(False) as progress:
        return ask(bundle, FolderImages(photos), None, [file], 1, progress.task)


def test_a_run_that_was_killed_goes_on_behind_its_last_shard(
    copy: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def dying(runner: Any) -> Any:
        def run(batch: Any) -> Any:
            calls.append(len(batch))
            if len(calls) == 5:  # within the second shard
                raise KeyboardInterrupt
            return runner(batch)

        return run

    with pytest.raises(KeyboardInterrupt):
        seen_of(copy, photos, monkeypatch, dying)
    whole = seen_of(copy, photos, monkeypatch, dying)
    assert len(calls) == 5 + 3 + 2  # batches of three; the second shard again, then the third
    again = seen_of(copy, photos, monkeypatch, lambda runner: runner)
    np.testing.assert_array_equal(whole.places, again.places)
    for name, first in whole.first.items():
        np.testing.assert_array_equal(first, again.first[name])
        np.testing.assert_array_equal(whole.beside[name], again.beside[name])
    assert len(whole.skipped) == 1


def test_answers_that_are_no_numbers_are_refused(
    copy: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(runner: Any) -> Any:
        return lambda batch: [np.full_like(array, np.nan) for array in runner(batch)]

    with pytest.raises(GateError, match="answers with NaN or infinity"):
        seen_of(copy, photos, monkeypatch, broken)
