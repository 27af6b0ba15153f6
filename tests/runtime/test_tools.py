"""The C++ tools on a real bundle, beside Python."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documented import commands
from new_report import replace_report

import cmt
from cmt.bundle.reader import open_bundle
from cmt.bundle.writer import describe_file, write_manifest
from cmt.export.pipeline import Bundle
from cmt.report.document import report_of

ROOT = Path(__file__).parents[2]
TEXT = ("--threads", "1", "--json")


def run(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture
def copy(openvino_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(openvino_bundle, tmp_path / "bundle")


def rewrite(folder: Path, change: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    write_manifest(folder, manifest)


@pytest.mark.parametrize("command", commands("build/runtime/"))
def test_documented_commands_run(
    any_runtime: Path,
    copy: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    program, *arguments = shlex.split(command)
    shutil.copy(copy / "golden" / "photo.jpg", tmp_path)
    (tmp_path / "photos").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    quick = ("--seconds", "0.1") if program.endswith("cmt_bench") else ()
    result = run(any_runtime / Path(program).relative_to("build/runtime"), *arguments, *quick)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_check_passes_on_fp32_and_int8(runtime: Path, openvino_bundle: Path) -> None:
    result = run(runtime / "cmt_check", openvino_bundle)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [line.split()[:2] for line in result.stdout.splitlines()] == [
        ["ok", "preprocessing:"],
        ["ok", "openvino/cmt_tiny.fp32.xml:"],
        ["ok", "openvino/cmt_tiny.int8.xml:"],
    ]


def test_check_fails_where_a_file_or_the_preprocessing_differs(runtime: Path, copy: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        entry = manifest["artefacts"][1]["golden"]["outputs"][0]
        logits = np.load(copy / entry["path"])
        np.save(copy / entry["path"], logits + 0.01 * np.abs(logits).max())
        entry |= describe_file(copy, copy / entry["path"])
        manifest["input"]["resize"]["box"] = [80, 80]

    rewrite(copy, change)
    result = run(runtime / "cmt_check", copy)
    assert result.returncode == 1
    assert "FAILED  preprocessing" in result.stdout
    assert "FAILED  openvino/cmt_tiny.fp32.xml" in result.stdout
    assert "ok      openvino/cmt_tiny.int8.xml" in result.stdout


@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_classify_answers_as_python_does(
    request: pytest.FixtureRequest, runtime: Path, photos: Path, kind: str
) -> None:
    if kind == "float32":
        folder = request.getfixturevalue("openvino_bundle")
    else:
        folder = request.getfixturevalue("uint8_bundle").path
    bundle = open_bundle(folder)
    assert bundle.manifest["input"]["dtype"] == kind
    paths = [*sorted(photos.rglob("*.png")), folder / "golden" / "photo.jpg"]
    for artefact in bundle.artefacts:
        if artefact["target"] != "openvino":
            continue
        name = f"openvino/{artefact['precision']}"
        with cmt.Classifier(folder, name, threads=1) as classifier:
            answers = classifier.classify(paths)
        result = run(runtime / "cmt_classify", folder, *paths, "--artefact", name, *TEXT)
        assert result.returncode == 0, result.stderr
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert [line["image"] for line in lines] == [str(path) for path in paths]
        for line, expected in zip(lines, answers, strict=True):
            found = line["classes"]
            assert [(c["index"], c["label"]) for c in found] == [
                (one.index, one.label) for one in expected
            ]
            for ours, theirs in zip(expected, found, strict=True):
                assert ours.probability == pytest.approx(theirs["probability"], abs=1e-6)


def test_classify_chooses_and_refuses_as_python_does(
    runtime: Path, openvino_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    def one_output(manifest: dict[str, Any]) -> None:
        manifest["labels"] = ["only"]

    changed = shutil.copytree(openvino_bundle, tmp_path / "one")
    rewrite(changed, one_output)
    text = tmp_path / "photo.jpg"
    text.write_text("no picture")
    photo = openvino_bundle / "golden" / "photo.jpg"
    chosen = cmt.Classifier(openvino_bundle).artefact
    assert f"running {chosen}\n" == run(runtime / "cmt_classify", openvino_bundle, photo).stderr
    for folder, image, file in (
        (openvino_bundle, photos / "red" / "broken.jpg", None),
        (openvino_bundle, text, None),
        (openvino_bundle, photo, "fp16"),
        (openvino_bundle, photo, "onnxruntime/int8"),
        (changed, photo, None),
        (photos, photo, None),
    ):
        named = [] if file is None else ["--artefact", file]
        result = run(runtime / "cmt_classify", folder, image, *named)
        assert result.returncode == 2
        with pytest.raises(cmt.InputError) as refused:
            cmt.Classifier(folder, file).classify(image)
        theirs = result.stderr.splitlines()[-1].removeprefix("cmt_classify: ")
        assert words(str(refused.value)) == words(theirs)


def words(message: str) -> str:
    """What a message says of a bundle or an image; the two read other kinds of image files."""
    kinds = message.replace("no JPEG or PNG file", "no image of a kind that is read")
    return kinds.replace("this build can", "this machine can")


def test_classifier_keeps_its_promises(
    runtime: Path, openvino_bundle: Path, uint8_bundle: Bundle, photos: Path
) -> None:
    paths = sorted(photos.rglob("*.png"))[:4]
    for folder in (openvino_bundle, uint8_bundle.path):
        result = run(runtime / "tests" / "use_classifier", folder, *paths)
        assert result.returncode == 0, result.stdout + result.stderr


def test_check_and_bench_feed_files_that_normalise_inside(
    runtime: Path, uint8_bundle: Bundle
) -> None:
    result = run(runtime / "cmt_check", uint8_bundle.path)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [line for line in result.stdout.splitlines() if "openvino/" in line]
    assert [line.split()[0] for line in lines] == ["ok", "ok", "ok"]
    result = run(runtime / "cmt_bench", uint8_bundle.path, "--seconds", "0.1")
    assert result.returncode == 0, result.stderr


def test_a_file_with_another_input_than_the_manifests_is_refused(runtime: Path, copy: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["input"] |= {"dtype": "uint8", "layout": "NHWC", "shape": [3, 64, 64, 3]}

    rewrite(copy, change)
    result = run(runtime / "cmt_check", copy)
    assert result.returncode == 2
    assert "cmt_tiny.fp32.xml does not have the manifest's input" in result.stderr


def test_engines_need_a_cuda_device(runtime: Path, bundle: Bundle, tmp_path: Path) -> None:
    if "CMT_WITH_TENSORRT" not in (runtime / "compile_commands.json").read_text():
        pytest.skip("TensorRT's headers are not on this machine")
    folder = shutil.copytree(bundle.path, tmp_path / "engines")

    def engines_only(manifest: dict[str, Any]) -> None:
        files = manifest["artefacts"]
        manifest["artefacts"] = [a for a in files if a["target"] in ("tensorrt", "onnx")]

    rewrite(folder, engines_only)
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is an NVIDIA GPU")
    result = run(runtime / "cmt_check", folder)
    assert result.returncode == 2
    assert "engine: no CUDA device" in result.stdout
    result = run(runtime / "cmt_classify", folder, "x.jpg", "--artefact", "tensorrt/int8")
    assert result.returncode == 2
    assert "cmt_tiny.int8.engine: no CUDA device" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_bench_gives_what_the_report_takes(runtime: Path, copy: Path) -> None:
    result = run(runtime / "cmt_bench", copy, "--seconds", "0.2", "--machine", "c++", "--json")
    assert result.returncode == 0, result.stderr
    entry = json.loads(result.stdout)
    assert [row["precision"] for row in entry["results"]] == ["fp32", "int8"]
    assert all(row["latency_ms"]["iterations"] >= 24 for row in entry["results"])
    bundle = open_bundle(copy)
    replace_report(bundle, {**report_of(bundle), "machines": [entry]})
    assert report_of(open_bundle(copy))["machines"] == [entry]


def test_a_tuned_number_of_threads_holds_unless_another_is_asked_for(
    any_runtime: Path, copy: Path
) -> None:
    def change(manifest: dict[str, Any]) -> None:
        for artefact in manifest["artefacts"]:
            if "settings" in artefact:
                artefact["settings"]["INFERENCE_NUM_THREADS"] = 1

    rewrite(copy, change)
    for arguments, expected in (((), 1), (("--threads", "2"), 2)):
        result = run(any_runtime / "cmt_bench", copy, *arguments, "--seconds", "0.1", "--json")
        assert result.returncode == 0, result.stderr
        rows = json.loads(result.stdout)["results"]
        assert {row["settings"]["threads"] for row in rows} == {expected}


def test_one_byte_changed_anywhere_is_refused_and_the_file_named(runtime: Path, copy: Path) -> None:
    for path in sorted(path for path in copy.rglob("*") if path.is_file()):
        content = path.read_bytes()
        changed = bytearray(content)
        changed[len(content) // 2] ^= 1
        path.write_bytes(changed)
        result = run(runtime / "cmt_check", copy)
        assert result.returncode == 2, path
        assert path.name in result.stderr
        assert len(result.stderr.splitlines()) == 1
        path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["../report.json", "a/../../b", "/etc/hostname", "", "a//b", "a\0b"]
)
def test_paths_that_are_not_within_the_bundle_are_refused(
    runtime: Path, copy: Path, name: str
) -> None:
    rewrite(copy, lambda manifest: manifest["golden"]["images"].update(path=name))
    result = run(runtime / "cmt_check", copy)
    assert result.returncode == 2
    by_schema = "manifest.json is damaged ($.golden.images.path: "
    assert "no path within a bundle" in result.stderr or by_schema in result.stderr


def test_a_link_out_of_the_bundle_is_refused(runtime: Path, copy: Path, tmp_path: Path) -> None:
    photo = copy / "golden" / "photo.jpg"
    photo.rename(tmp_path / "photo.jpg")
    photo.symlink_to(tmp_path / "photo.jpg")
    result = run(runtime / "cmt_check", copy)
    assert result.returncode == 2
    assert "leads out of the bundle" in result.stderr


@pytest.mark.parametrize("name", ["golden/photo.jpg", "manifest.json.sha256"])
def test_a_pipe_in_place_of_a_file_is_refused(runtime: Path, copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    result = run(runtime / "cmt_check", copy)
    assert result.returncode == 2
    assert f"{name} is not the file of this bundle (it is no file)" in result.stderr


def test_settings_that_could_write_files_are_refused(
    runtime: Path, copy: Path, tmp_path: Path
) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["artefacts"][-1]["settings"]["CACHE_DIR"] = str(tmp_path / "cache")

    rewrite(copy, change)
    result = run(runtime / "cmt_check", copy)
    assert result.returncode == 2
    assert "settings.CACHE_DIR: it is not known here" in result.stderr


@pytest.mark.parametrize("count", [1, 3, 3000])
def test_labels_are_as_many_as_the_answers(any_runtime: Path, stored: Path, count: int) -> None:
    rewrite(stored, lambda manifest: manifest.update(labels=["x"] * count))
    photo = stored / "golden" / "photo.jpg"
    file = "openvino/cmt_tiny.int8.xml"
    for tool, more in (("cmt_check", ()), ("cmt_bench", ()), ("cmt_classify", (photo,))):
        result = run(any_runtime / tool, stored, *more)
        assert result.returncode == 2
        by_golden = f"{file} answers for 2 classes and the manifest names {count}"
        by_file = f"{file} does not answer with one number for each label"
        assert (by_golden if tool == "cmt_check" else by_file) in result.stderr


def test_a_file_is_hashed_once_however_often_it_is_named(runtime: Path, stored: Path) -> None:
    """Ten thousand mentions of a large file would take an hour."""
    (stored / "large").write_bytes(bytes(300_000_000))
    entry = describe_file(stored, stored / "large")
    rewrite(stored, lambda manifest: manifest["environment"].update(x=[entry] * 10_000))
    result = run(runtime / "cmt_check", stored)
    assert result.returncode in (0, 1), result.stderr  # 1 where INT8 sums are cut off
    wrong = {**entry, "sha256": "0" * 64}
    rewrite(stored, lambda manifest: manifest["environment"].update(x=[entry, wrong]))
    result = run(runtime / "cmt_check", stored)
    assert result.returncode == 2
    assert "large is there twice, with different contents" in result.stderr


def test_a_newer_schema_is_refused_with_its_version(runtime: Path, copy: Path) -> None:
    rewrite(copy, lambda manifest: manifest.update(schema=7, something="new"))
    result = run(runtime / "cmt_check", copy)
    assert result.returncode == 2
    assert "schema 7, this version reads up to 1" in result.stderr


@pytest.mark.parametrize("tool", ["cmt_classify", "cmt_check", "cmt_bench"])
def test_bad_arguments_are_one_line(runtime: Path, tmp_path: Path, tool: str) -> None:
    for arguments in ([], ["--what"], [str(tmp_path / "none"), "x.jpg"]):
        result = run(runtime / tool, *arguments)
        assert result.returncode == 2
        assert result.stderr.startswith(f"{tool}: ")
        assert len(result.stderr.splitlines()) == 1
    assert run(runtime / tool, "--help").stdout.startswith(f"usage: {tool} BUNDLE")
