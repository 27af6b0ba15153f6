"""C++ on devices: refused by name where they answer otherwise, accurate to the image as Python."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from new_report import replace_report
from PIL import Image

from cmt.bundle.reader import open_bundle
from cmt.bundle.writer import describe_file, write_manifest
from cmt.calib_data.sources import BUNDLED, FASHION_LABELS, FolderImages, idx_test_images
from cmt.commands.cmt_export import export_cli
from cmt.export.pipeline import Bundle
from cmt.measure.device_rows import Images, Measured, measure_accuracy
from cmt.measure.on_device import File, file_name
from cmt.measure.progress import ProgressBars
from cmt.network import CMT
from cmt.report.document import read_report, report_of

QUICK = ("--seconds", "0.05", "--threads", "1")
EXACT = ("top1", "top5", "images", "agreement")


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def copy(openvino_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(openvino_bundle, tmp_path / "copy")


@pytest.fixture
def images(photos: Path, tmp_path: Path) -> Path:
    """Photos of the export, two that it did not have, and a file that is no image."""
    folder = shutil.copytree(photos, tmp_path / "images")
    rng = np.random.default_rng(7)
    for name in ("red/new.jpg", "blue/deeper/new.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (57, 91, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "blue" / "notes.txt").write_text("no image")
    return folder


def by_cpp(runtime: Path, folder: Path, *arguments: object) -> dict[str, Any]:
    result = run(runtime / "cmt_bench", folder, *QUICK, "--machine", "c++", "--json", *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def by_python(folder: Path, images: Images) -> Measured:
    """The same files, asked in this process."""
    bundle = open_bundle(folder)
    files = [File(entry, None, entry["settings"], 3) for entry in bundle.artefacts]
    with ProgressBars(False) as progress:
        return measure_accuracy(bundle, images, files, 1, progress.task)


def beside(ours: dict[str, Any], theirs: Any) -> None:
    """C++'s row has Python's figures."""
    for name in EXACT:
        assert ours["accuracy"][name] == theirs["accuracy"][name]
    for name in ("drop_pp", "drop_ci95", "mcnemar_p", "resolvable_pp"):
        assert ours["accuracy"][name] == pytest.approx(theirs["accuracy"][name], rel=1e-9)
    for name in ("images", "agreement"):
        assert ours["beside_torch"][name] == theirs["beside_torch"][name]
    assert ours["beside_torch"]["max_rel"] == pytest.approx(
        theirs["beside_torch"]["max_rel"], rel=1e-2, abs=1e-6
    )
    assert ours.get("unknown_images") == theirs.get("unknown_images")


def test_a_folders_figures_are_pythons_to_the_image(
    any_runtime: Path, copy: Path, images: Path, turn_answers: Callable[[Path], None]
) -> None:
    turn_answers(copy)
    ours = by_cpp(any_runtime, copy, "--val-data", images)
    theirs = by_python(copy, Images(FolderImages(images)))
    assert ours["images"] == theirs.images
    assert ours["images"]["left_out"] == 1
    assert (ours["images"]["images"], ours["images"]["unknown"]) == (22, 2)
    for one in ours["results"]:
        beside(one, theirs.rows[file_name(one["artefact"], None, 3)])
        assert one["accuracy"]["agreement"] < 1
    bundle = open_bundle(copy)
    replace_report(bundle, {**report_of(bundle), "machines": [ours]})
    assert "openvino int8, answering on c++: Top-1 is " in (copy / "report.md").read_text()


@pytest.fixture
def turn_answers() -> Callable[[Path], None]:
    """Torch's first two classes exchanged for every third image."""

    def turn(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        path = folder / "answers" / "classes.npy"
        classes = np.load(path)
        classes[::3] = classes[::3, ::-1]
        np.save(path, classes)
        manifest["answers"]["classes"] = describe_file(folder, path)
        write_manifest(folder, manifest)

    return turn


@pytest.mark.usefixtures("tiny_in_process")
def test_the_bundled_images_give_the_exports_figures_in_both_languages(
    any_runtime: Path,
    tiny_network: Callable[..., CMT],
    save_labelled: Callable[..., None],
    tmp_path: Path,
) -> None:
    save_labelled(tiny_network("official", 10), tmp_path / "w.safetensors", FASHION_LABELS)
    words = f"--variant tiny --weights {tmp_path / 'w.safetensors'} --target openvino --target "
    words += "onnxruntime --val-count 24 --batch 3 --max-drop 100 --no-tune --bench-seconds 0.1"
    out = tmp_path / "out"
    export_cli.main([*words.split(), "--out", str(out)], standalone_mode=False)
    exported = {row["artefact"]: row for row in read_report(out / "report.json")["results"]}
    for count in (24, 7):
        source = Images(idx_test_images(BUNDLED), count)
        ours = by_cpp(any_runtime, out, "--val-data", BUNDLED, "--val-count", count)
        theirs = by_python(out, source)
        assert (ours["images"]["images"], ours["images"]["unknown"]) == (count, 0)
        rows = {row["artefact"]: row for row in ours["results"]}
        built = {"openvino", "onnxruntime"} & {*ours["environment"]["packages"]}
        assert {row["target"] for row in rows.values()} == built
        for path, row in rows.items():
            beside(row, theirs.rows[file_name(path, None, 3)])
            assert row["beside_torch"]["max_rel"] < 1e-3
            if count == 24:
                told = exported[path]["accuracy"]
                assert [row["accuracy"][name] for name in EXACT] == [told[name] for name in EXACT]


def test_a_killed_run_goes_on_where_it_was(
    any_runtime: Path, copy: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed by a limit on files, as what is kept grows by a line for each damaged image."""
    folder = tmp_path / "many"
    for name in ("blue", "red"):
        (folder / name).mkdir(parents=True)
    for i in range(300):
        os.link(photos / "blue" / f"{i % 10}.png", folder / "blue" / f"{i:03}.png")
        (folder / "red" / f"{i:03}.jpg").write_bytes(b"\xff\xd8\xff no picture")
    asked = ("--val-data", folder)
    whole = by_cpp(any_runtime, copy, *asked)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = [any_runtime / "cmt_bench", copy, *QUICK, "--json", *asked]
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (4096, 4096))
    killed = subprocess.run(command, capture_output=True, check=False, preexec_fn=limit)
    assert killed.returncode == -signal.SIGXFSZ
    again = subprocess.run(command, capture_output=True, check=True, text=True)
    assert "goes on behind image 258" in again.stderr
    found = json.loads(again.stdout)
    assert found["images"] == whole["images"]
    assert found["images"]["skipped"] == 300
    for ours, theirs in zip(found["results"], whole["results"], strict=True):
        for name in ("accuracy", "beside_torch"):
            assert ours[name] == theirs[name]
    assert not [*(tmp_path / "cache").rglob("*.json")]


def test_the_exports_own_images_give_the_exports_figures(
    runtime: Path, uint8_bundle: Bundle, photos: Path
) -> None:
    exported = {row["artefact"]: row for row in uint8_bundle.report["results"]}
    rows = by_cpp(runtime, uint8_bundle.path, "--val-data", photos)["results"]
    assert {row["target"] for row in rows} >= {"openvino"}
    for row in rows:
        told = exported[row["artefact"]]["accuracy"]
        assert [row["accuracy"][name] for name in EXACT] == [told[name] for name in EXACT]
        assert "unknown_images" not in row


def test_images_without_classes_or_torchs_answers_are_told_apart(
    any_runtime: Path, copy: Path, stored: Path, photos: Path
) -> None:
    for row in by_cpp(any_runtime, copy, "--val-data", photos / "red")["results"]:
        assert row["accuracy"] is None
        assert row["beside_torch"]["images"] == 10
    for row in by_cpp(any_runtime, stored, "--val-data", photos)["results"]:
        assert row["accuracy"]["drop_pp"] is None
        assert row["unknown_images"]["agreement"] is None  # it has no FP32 file


def test_folders_and_answers_are_refused_as_python_does(
    any_runtime: Path, copy: Path, photos: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(photos, tmp_path / "other")
    (other / "red").rename(other / "green")
    (tmp_path / "empty").mkdir()
    for folder, words in (
        (other, "has a folder 'green', which is no class of the bundle"),
        (tmp_path / "none", "no image folder at"),
        (tmp_path / "empty", "no images in"),
    ):
        result = run(any_runtime / "cmt_bench", copy, *QUICK, "--val-data", folder)
        assert result.returncode == 2
        assert words in result.stderr
        assert len(result.stderr.splitlines()) == 1
    reseal(copy, "answers/classes.npy", lambda array: array[:3])
    result = run(any_runtime / "cmt_bench", copy, *QUICK, "--val-data", photos)
    assert result.returncode == 2
    assert "do not belong together" in result.stderr


def reseal(folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """An array of the bundle changed, and its hash made anew wherever the manifest has it."""
    path = folder / name
    np.save(path, change(np.load(path)))
    text = (folder / "manifest.json").read_text()
    manifest = json.loads(text)

    def renew(value: Any) -> None:
        if isinstance(value, dict) and value.get("path") == name:
            value |= describe_file(folder, path)
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, dict | list):
                renew(item)

    renew(manifest)
    write_manifest(folder, manifest)


def test_a_device_that_is_not_there_is_told_from_those_that_are(
    runtime: Path, openvino_bundle: Path
) -> None:
    photo = openvino_bundle / "golden" / "photo.jpg"
    for tool, more in (("cmt_check", ()), ("cmt_bench", ()), ("cmt_classify", (photo,))):
        result = run(runtime / tool, openvino_bundle, *more, "--device", "TPU")
        assert result.returncode == 2
        assert ": openvino has no device TPU here: CPU" in result.stderr
        assert result.stderr.rstrip().endswith("AUTO")
        assert len(result.stderr.splitlines()) == 1


def test_openvinos_own_choice_answers_as_the_cpu(any_runtime: Path, openvino_bundle: Path) -> None:
    result = run(any_runtime / "cmt_check", openvino_bundle, "--device", "AUTO")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "ok      openvino/cmt_tiny.int8.xml on AUTO: differs by" in result.stdout
    photo = openvino_bundle / "golden" / "photo.jpg"
    usual, chosen = (
        run(any_runtime / "cmt_classify", openvino_bundle, photo, *more)
        for more in ((), ("--device", "AUTO"))
    )
    assert usual.stdout == chosen.stdout
    rows = by_cpp(any_runtime, openvino_bundle, "--device", "AUTO")["results"]
    assert {row["settings"]["device"] for row in rows} == {"AUTO"}


def test_a_plug_in_whose_answers_are_shuffled_is_refused(
    any_runtime: Path, openvino_bundle: Path, tmp_path: Path
) -> None:
    if any_runtime.name != "runtime":
        pytest.skip("sanitizers must be loaded first, an emulator loads nothing of this machine")
    shuffle = tmp_path / "shuffle.so"
    headers = Path(openvino.__file__).parent / "include"
    source = Path(__file__).with_name("stubs") / "shuffled_openvino.cpp"
    build = ["c++", "-std=c++17", "-shared", "-fPIC", f"-I{headers}", source, "-o", shuffle]
    subprocess.run(build, check=True)
    environment = {**os.environ, "LD_PRELOAD": str(shuffle)}
    photo = openvino_bundle / "golden" / "photo.jpg"
    for tool, more, status in (
        ("cmt_check", (), 1),
        ("cmt_bench", QUICK, 1),
        ("cmt_classify", (photo,), 2),
    ):
        command = [any_runtime / tool, openvino_bundle, *map(str, more), "--device", "AUTO"]
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == status, result.stderr
        said = result.stdout if tool == "cmt_check" else result.stderr
        assert "int8.xml" in said
        assert "AUTO" in said


@pytest.mark.parametrize(
    ("name", "file", "words"),
    [
        ("golden/openvino-int8-logits.npy", "openvino/cmt_tiny.int8.xml", "differs by"),
        # Its own golden answers are kept; those of the FP32 file are others.
        ("golden/openvino-fp32-logits.npy", "openvino/cmt_tiny.int8.xml", "has a cosine of -"),
    ],
)
def test_a_device_that_answers_otherwise_is_refused_by_name(
    runtime: Path, copy: Path, name: str, file: str, words: str
) -> None:
    """A device is wrong where a file does not answer as the bundle says: here the bundle does."""
    reseal(copy, name, lambda logits: -logits)
    checked = run(runtime / "cmt_check", copy, "--device", "CPU")
    assert checked.returncode == 1
    assert f"FAILED  {file} on CPU: {words}" in checked.stdout
    timed = run(runtime / "cmt_bench", copy, *QUICK, "--device", "CPU", "--json")
    assert timed.returncode == 1
    assert not timed.stdout
    assert f"device CPU does not compute what the bundle's files do: {file} {words}" in timed.stderr
    photo = copy / "golden" / "photo.jpg"
    asked = ("--artefact", "int8", "--device", "CPU")
    classified = run(runtime / "cmt_classify", copy, photo, *asked)
    assert classified.returncode == 2
    assert "device CPU does not compute" in classified.stderr
    # Without a device that is named, --verify and cmt_check alone compare.
    assert run(runtime / "cmt_classify", copy, photo, "--artefact", "int8").returncode == 0
