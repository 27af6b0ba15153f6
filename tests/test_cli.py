"""Bad input: exit status 2, one line that says what to do, nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cmt.checkpoints import load_model, named_weights
from cmt.commands import main
from cmt.commands.parameters import Batch
from cmt.export.inputs import resolve
from cmt.export.options import ExportOptions
from cmt.layouts import to_public_layout

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call the command in this process; returns (exit status, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["cmt-export", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main.run("cmt-export")
        return int(stop.value.code or 0), capsys.readouterr().err

    return call


def refused(run: Run, folder: Path, *arguments: object) -> str:
    """The one line that the command refuses with; checks status and leftovers."""
    before = sorted(folder.rglob("*"))
    status, error = run(*arguments)
    assert status == 2, error
    (line,) = error.strip().splitlines()
    assert line.startswith("cmt-export: ")
    assert sorted(folder.rglob("*")) == before
    return line


OPENVINO = ("--target", "openvino")
TI = ("--variant", "ti", *OPENVINO)


@pytest.fixture(scope="module")
def ti_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return to_public_layout(load_model("ti", img_size=32, num_classes=2))


@pytest.fixture
def ti_weights(ti_state: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    """CMT-Ti for 32x32 pixels and two classes, without metadata."""
    path = tmp_path / "ti.safetensors"
    save_file({key: value.contiguous() for key, value in ti_state.items()}, path)
    return path


def picture_folder(root: Path, classes: tuple[str, ...], each: int = 3) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 256, (40, 48, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.jpg")
    return root


def test_help_answers_in_half_a_second() -> None:
    command = [
        sys.executable,
        "-c",
        "from cmt.commands.main import run; run('cmt-export')",
        "--help",
    ]
    times = []
    for _ in range(3):
        before = os.times()
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        after = os.times()
        # Of the processor, which other tests share; it waits for nothing.
        user = after.children_user - before.children_user
        times.append(user + after.children_system - before.children_system)
    assert "--variant" in result.stdout
    assert min(times) < 0.5


def test_unknown_variant(run: Run, tmp_path: Path) -> None:
    line = refused(run, tmp_path, "--variant", "xl", *OPENVINO)
    assert "'ti', 'xs', 's', 'b'" in line


def test_unknown_option_and_missing_target(run: Run, tmp_path: Path) -> None:
    assert "--int4" in refused(run, tmp_path, *TI, "--int4")
    assert "--target" in refused(run, tmp_path, "--variant", "ti")


@pytest.mark.parametrize(
    "size", ["100", "160x100", "0", "-32", "160x160x3", "big", "1_60", "١٦٠", "163840", "9" * 400]
)
def test_size_that_is_no_multiple_of_32(run: Run, tmp_path: Path, size: str) -> None:
    line = refused(run, tmp_path, *TI, "--img-size", size)
    assert "160" in line


def test_missing_and_empty_weights(run: Run, tmp_path: Path) -> None:
    assert "no weights at" in refused(run, tmp_path, *TI, "--weights", tmp_path / "none.pth")
    empty = tmp_path / "empty.pth"
    empty.touch()
    assert "is empty" in refused(run, tmp_path, *TI, "--weights", empty)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--seed", "-1"),
        ("--seed", "99999999999999999999"),
        ("--max-drop", "nan"),
        ("--max-drop", "inf"),
        ("--bench-seconds", "inf"),
        ("--bench-seconds", "0"),
        ("--threads", "0"),
        ("--batch", "0"),
        ("--batch", "4097"),
        ("--batch", "1:8"),
        ("--batch", "8:1:32"),
        ("--batch", "1:8:4097"),
        ("--batch", "1:8:32"),
        ("--threads", "100000"),
        ("--val-count", "-5"),
        ("--image-range", "1,0"),
        ("--image-range", "0"),
        ("--image-range", "0,inf"),
        ("--qat", "-1"),
        ("--qat", "3"),  # without --int8
        ("--qat-data", "photos"),  # without --qat
    ],
)
def test_numbers_that_make_no_sense(run: Run, tmp_path: Path, arguments: tuple[str, str]) -> None:
    assert arguments[0] in refused(run, tmp_path, *TI, *arguments)


def test_a_batch_is_a_number_or_a_range_around_the_usual_one() -> None:
    assert Batch().convert("8", None, None) == (8, None)
    assert Batch().convert("1:8:32", None, None) == (8, (1, 32))


@pytest.mark.parametrize("option", ["--calib-data", "--val-data", "--out"])
def test_an_empty_path_does_not_stand_for_this_folder(
    run: Run, tmp_path: Path, option: str
) -> None:
    assert f"'{option}': it is empty" in refused(run, tmp_path, *TI, option, "")


def test_an_empty_weights_path_does_not_stand_for_the_demo(run: Run, tmp_path: Path) -> None:
    assert "no weights at" in refused(run, tmp_path, *TI, "--weights", "")


def test_a_message_brings_no_escape_sequence_to_the_terminal(run: Run, tmp_path: Path) -> None:
    line = refused(run, tmp_path, *TI, "--weights", "a\nb\x1b[31m")
    assert "no weights at a b" in line
    assert "\x1b" not in line


def no_room_for_a_frame() -> NoReturn:
    raise SystemError("error return without exception set")  # CPython 3.11's words for it


def no_room_for_code() -> NoReturn:
    raise RuntimeError("could not create a primitive")  # oneDNN's


@pytest.mark.parametrize(
    "fails", [lambda: torch.empty(2**60), no_room_for_a_frame, no_room_for_code]
)
def test_more_memory_than_there_is_is_said_in_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[[], object]
) -> None:
    monkeypatch.setattr("cmt.export.inputs.load_noted", lambda *_, **__: fails())
    status, error = run(*TI, "--weights", "random")
    assert status == 3
    assert "out of memory" in error.splitlines()[-1]
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("labels", "[" * 100_000),
        ("labels", '"ab"'),
        ("labels", '{"a": 1, "b": 2}'),
        ("labels", '[["a"], null]'),
        ("wnids", '["\\ud800", "b"]'),
    ],
)
def test_labels_that_are_no_list_of_names(
    run: Run, tmp_path: Path, ti_state: dict[str, torch.Tensor], key: str, value: str
) -> None:
    path = tmp_path / "named.safetensors"
    save_file({key: value.contiguous() for key, value in ti_state.items()}, path, {key: value})
    assert "labels are no JSON list" in refused(run, tmp_path, *TI, "--weights", path)


def test_precision_that_no_target_has(run: Run, tmp_path: Path) -> None:
    arguments = ("--variant", "ti", "--target", "onnxruntime", "--fp16", "--weights", "random")
    assert "no fp16 file" in refused(run, tmp_path, *arguments)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_truncated_weights(
    run: Run, tmp_path: Path, ti_state: dict[str, torch.Tensor], suffix: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(ti_state, path)
    else:
        save_file({key: value.contiguous() for key, value in ti_state.items()}, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "damaged" in refused(run, tmp_path, *TI, "--weights", path)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


def test_pickle_bomb_does_not_go_off(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    torch.save({"model": {}, "extra": Bomb(tmp_path / "went_off")}, path)
    assert "run code" in refused(run, tmp_path, *TI, "--weights", path)
    assert not (tmp_path / "went_off").exists()


def test_weights_of_another_variant_name_the_right_one(
    run: Run, tmp_path: Path, ti_weights: Path
) -> None:
    line = refused(run, tmp_path, "--variant", "s", *OPENVINO, "--weights", ti_weights)
    assert "--variant ti" in line


def test_weights_with_nan(run: Run, tmp_path: Path, ti_state: dict[str, torch.Tensor]) -> None:
    state = {key: value.clone() for key, value in ti_state.items()}
    state["stem_conv1.weight"][0, 0, 0, 0] = float("nan")
    path = tmp_path / "nan.pth"
    torch.save(state, path)
    assert "stem_conv1.weight" in refused(run, tmp_path, *TI, "--weights", path)


def test_empty_calibration_folder(run: Run, tmp_path: Path, ti_weights: Path) -> None:
    (tmp_path / "none").mkdir()
    line = refused(
        run, tmp_path, *TI, "--int8", "--weights", ti_weights, "--calib-data", tmp_path / "none"
    )
    assert "no images in" in line


def test_all_calibration_images_corrupt(run: Run, tmp_path: Path, ti_weights: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(b"\xff\xd8\xff no picture")
    arguments = ("--int8", "--weights", ti_weights, "--calib-data", folder)
    # The folders above --out, made for it, must go as well.
    line = refused(run, tmp_path, *TI, *arguments, "--out", tmp_path / "new" / "deep" / "out")
    assert "no image of" in line


def test_int8_of_own_weights_asks_for_calibration_images(
    run: Run, tmp_path: Path, ti_weights: Path
) -> None:
    assert "--calib-data" in refused(run, tmp_path, *TI, "--int8", "--weights", ti_weights)


def test_labels_that_do_not_match_the_classes(run: Run, tmp_path: Path, ti_weights: Path) -> None:
    folder = picture_folder(tmp_path / "val", ("ant", "bee", "cow"))
    line = refused(run, tmp_path, *TI, "--weights", ti_weights, "--val-data", folder)
    assert "3 class folders" in line
    assert "2 classes" in line


def test_class_folders_that_the_weights_do_not_know(
    run: Run, tmp_path: Path, ti_state: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "named.safetensors"
    state = {key: value.contiguous() for key, value in ti_state.items()}
    save_file(state, path, {"labels": json.dumps(["ant", "bee"])})
    folder = picture_folder(tmp_path / "val", ("cat", "dog"))
    line = refused(run, tmp_path, *TI, "--weights", path, "--val-data", folder)
    assert "'cat'" in line
    assert "ant, bee" in line


def test_flat_validation_folder(run: Run, tmp_path: Path, ti_weights: Path) -> None:
    folder = picture_folder(tmp_path / "val", ("ant",)) / "ant"
    line = refused(run, tmp_path, *TI, "--weights", ti_weights, "--val-data", folder)
    assert "class/name.jpg" in line


def test_existing_output_folder_is_kept_and_force_spares_what_is_no_bundle(
    run: Run, tmp_path: Path
) -> None:
    precious = tmp_path / "out" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    assert "--force" in refused(run, tmp_path, *TI, "--out", tmp_path / "out")
    assert "no bundle" in refused(run, tmp_path, *TI, "--out", tmp_path / "out", "--force")
    assert precious.read_text() == "years of work"
    (tmp_path / "out" / "manifest.json").write_text('{"name": "a web page"}')
    assert "no bundle" in refused(run, tmp_path, *TI, "--out", tmp_path / "out", "--force")


def test_output_folder_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = refused(run, tmp_path, *TI, "--weights", "random", "--out", tmp_path / "file" / "out")
    assert "cannot write" in line


def test_a_destination_without_a_name_is_refused(run: Run, tmp_path: Path) -> None:
    line = refused(run, tmp_path, *TI, "--weights", "random", "--out", "/", "--force")
    assert "--out /" in line


def test_demo_weights_fit_the_bundled_images() -> None:
    inputs = resolve(ExportOptions("ti", ("openvino",)), needs_calibration=True)
    assert inputs.label_map == {i: i for i in range(10)}
    assert inputs.preprocessing.resize == (160, 160)
    assert inputs.model.metadata["top1"]
    assert named_weights("demo", "ti").stat().st_size < 17_000_000


def test_tensorrt_where_no_library_is_installed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmt.targets.tensorrt.library.importlib.util.find_spec", lambda name: None)
    line = refused(run, tmp_path, "--variant", "ti", "--target", "tensorrt", "--int8")
    assert "pip install" in line


def test_unknown_gpu_architecture_lists_the_known(run: Run, tmp_path: Path) -> None:
    assert "sm86" in refused(run, tmp_path, *TI, "--gpu-arch", "sm11")
