"""The command trains, says how far it is, stops when it is told to, and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cmt import InputError, load_model
from cmt.commands.cmt_train import train_cli


def test_validation_must_have_the_same_classes(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_images("ant/a.png", "bee/a.png")
    val = make_images("ant/a.png", "cat/a.png", root="val")
    arguments = ["--data", str(data), "--val", str(val), "--out", str(tmp_path / "run")]
    with pytest.raises(InputError, match="same classes"):
        CliRunner().invoke(train_cli, arguments, catch_exceptions=False)


def arguments(folder: Path, out: Path, *more: object) -> list[str]:
    return [str(a) for a in ("--data", folder, "--val", folder, "--out", out, *more)]


def test_the_command_trains_measures_and_writes_weights(folder: Path, tmp_path: Path) -> None:
    words = arguments(folder, tmp_path / "run", "--schedule", "32:24:2")
    for again in (False, True):  # a finished run is measured again and not trained again
        result = CliRunner().invoke(train_cli, words, catch_exceptions=False)
        assert result.exit_code == 0
        assert "% on 12 images" in result.output
        assert ("after 12 of 24 images" in result.output) is not again  # and underway
        assert ("goes on after 24 of 24" in result.output) is again
    model = load_model("ti", tmp_path / "run" / "cmt_ti.safetensors")
    assert (model.img_size, model.num_classes) == ((32, 32), 3)
    assert model.metadata["top1"].endswith(f"% on 12 images of {folder}")


def test_a_range_of_images_goes_into_the_weights(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for path in folder.glob("*/*.png"):
        Image.fromarray(rng.integers(0, 5000, (32, 32)).astype(np.uint16)).save(path)
    words = arguments(folder, tmp_path / "run", "--schedule", "32:4:2", "--image-range", "0,4095")
    result = CliRunner().invoke(train_cli, words, catch_exceptions=False)
    assert "training image(s) read by --image-range 0,4095 have values outside" in result.output
    assert "12 of 12 validation image(s) read by --image-range 0,4095" in result.output
    model = load_model("ti", tmp_path / "run" / "cmt_ti.safetensors")
    assert json.loads(model.metadata["image_range"]) == [0, 4095]


def test_files_of_a_run_have_the_mode_that_others_have(folder: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        words = arguments(folder, tmp_path / "run", "--schedule", "32:4:2")
        CliRunner().invoke(train_cli, words, catch_exceptions=False)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run").iterdir()}
    assert {"state.pt", "cmt_ti.safetensors"} <= modes.keys()
    assert set(modes.values()) == {0o640}


def test_what_is_left_out_and_how_weights_were_found_is_said(folder: Path, tmp_path: Path) -> None:
    (folder / "ant" / "0.png").write_bytes(b"no picture")
    start = load_model("ti", img_size=32, num_classes=2).state_dict()
    other = {name: value + 1 for name, value in start.items()}
    torch.save({"model": other, "ema": start}, tmp_path / "init.pth")
    more = ("--schedule", "32:24:2", "--init", tmp_path / "init.pth")
    words = arguments(folder, tmp_path / "run", *more)
    result = CliRunner().invoke(train_cli, words, catch_exceptions=False)
    assert "warning: 1 training image(s) could not be decoded" in result.stderr
    assert "warning: 1 validation image(s) could not be decoded" in result.stderr
    assert "init.pth: the averaged weights were taken, 'ema', not 'model'" in result.stderr
    assert "% on 11 images" in result.output


def command(*words: str) -> list[str]:
    call = "from cmt.commands.main import run; run('cmt-train')"
    return [sys.executable, "-c", call, *words]


def test_an_interrupted_command_has_saved_what_it_says_it_goes_on_from(
    folder: Path, tmp_path: Path
) -> None:
    words = arguments(folder, tmp_path / "run", "--schedule", "32:200000:2")
    process = subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:  # the accuracy after the first epoch
        if "top-1" in line:
            break
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error.strip() == (
        "cmt-train: interrupted: the same command goes on from the last saved state"
    )
    saved = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert saved["step"] >= 6


def own_shared_memory(size: str) -> list[str]:
    """Runs a command with so much shared memory, as containers have little."""
    script = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$0" "$@"'
    return ["unshare", "--mount", "sh", "-c", script]


def test_training_needs_no_shared_memory(folder: Path, tmp_path: Path) -> None:
    probe = subprocess.run([*own_shared_memory("4k"), "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("needs the right to mount")
    # A batch takes 49 KB.
    words = arguments(folder, tmp_path / "run", "--schedule", "32:12:4")
    limited = [*own_shared_memory("4k"), *command(*words)]
    result = subprocess.run(limited, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert "% on 12 images" in result.stdout
