"""What all commands have: a version, a log, silence; and options from a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import cmt
from cmt.bundle.manifest import MANIFEST, SEAL
from cmt.bundle.reader import open_bundle
from cmt.commands import cmt_export, main
from cmt.errors import InputError
from cmt.export.inputs import resolve
from cmt.export.options import ExportOptions
from cmt.export.pipeline import Bundle
from cmt.export.toml import CONFIG, config_text
from cmt.files import sha256_file
from cmt.network import CMT
from cmt.report.document import REPORT_FILES
from cmt.weight_files import in_memory

Run = Callable[..., tuple[int, str, str]]
Chosen = Callable[..., ExportOptions | str]


@pytest.fixture
def chosen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Chosen:
    """What `cmt-export` would run with such arguments, or the line that it refuses them with."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> ExportOptions | str:
        found: list[ExportOptions] = []
        monkeypatch.setattr(cmt_export, "_rehearse", lambda options, *_: found.append(options))
        monkeypatch.setattr(sys, "argv", ["cmt-export", *map(str, arguments), "--dry-run"])
        with pytest.raises(SystemExit):
            main.run("cmt-export")
        error = capsys.readouterr().err
        return found[0] if found else error.strip()

    return call


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_says_its_version(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--version"])
    with pytest.raises(SystemExit) as stop:
        main.run(name)
    assert stop.value.code in (0, None)
    assert capsys.readouterr().out == f"{name} {cmt.__version__}\n"


ODD: dict[str, Any] = {
    "variant": "s",
    "targets": ("openvino", "tensorrt"),
    "precisions": ("int8",),
    "weights": 'a "b"\\c\x7f\n\u00e9.pth',
    "weights_key": "state_dict",
    "img_size": (192, 256),
    "batch": 8,
    "batch_range": (1, 32),
    "embed_preprocess": True,
    "calib_data": Path("photos"),
    "image_range": (0.0, 4095.5),
    "max_drop": 1e-05,
    "tune": False,
    "qat": 2,
    "seed": 2**62,
}


@pytest.mark.parametrize(
    "options", [ODD, {"variant": "ti", "targets": ("openvino",)}], ids=["odd", "plain"]
)
def test_options_come_back_from_what_was_written(
    options: dict[str, Any], chosen: Chosen, tmp_path: Path
) -> None:
    given = ExportOptions(**options)
    path = tmp_path / CONFIG
    path.write_text(config_text(given), encoding="utf-8")
    found = chosen("--config", path)
    assert isinstance(found, ExportOptions), found
    assert found.identity == given.identity


def test_the_command_line_wins_over_the_file(chosen: Chosen, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('variant = "ti"\ntarget = "openvino"\nint8 = true\nseed = 3\nbatch = 2\n')
    found = chosen("--config", path, "--seed", 4, "--target", "onnxruntime")
    assert isinstance(found, ExportOptions), found
    assert (found.seed, found.batch, found.targets) == (4, 2, ("onnxruntime",))
    assert found.precisions == ("int8",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sede = 3", "there is no option 'sede'"),
        ("verbose = true", "there is no option 'verbose'"),
        ("int8 = 1", "'int8' must be true or false"),
        ("seed = [1]", "'seed' must be a text or a number"),
        ("seed = 'x'", "'x' is not a valid integer"),
        ("variant = 'zz'", "'zz' is not one of"),
        ("seed", "is no TOML file"),
        ("\ud800", "is no TOML file"),
    ],
)
def test_a_file_that_will_not_do_is_refused_in_a_line(
    text: str, said: str, chosen: Chosen, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    line = chosen("--config", path, "--variant", "ti", "--target", "openvino")
    if "variant" in text:
        line = chosen("--config", path, "--target", "openvino")
    assert isinstance(line, str)
    assert said in line
    assert "\n" not in line


def test_a_bundle_has_the_options_that_it_was_made_with(bundle: Bundle, chosen: Chosen) -> None:
    opened = open_bundle(bundle.path)
    assert opened.manifest["config"]["path"] == CONFIG
    text = opened.file(opened.manifest["config"]).read_text()
    assert "max-drop = 100.0" in text
    found = chosen("--config", opened.file(opened.manifest["config"]))
    assert "'tiny' is not one of" in str(found)


def held_apart(folder: Path) -> dict[str, str]:
    """The sha256 of a bundle's files but those that hold times, which the reports do."""
    timed = {MANIFEST, SEAL, *REPORT_FILES}
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name not in timed
    }


def test_a_bundles_own_file_makes_the_same_bytes_again(
    small: str, resumable: Callable[[Path], Path], run_command: Run, tmp_path: Path
) -> None:
    first, again = resumable(tmp_path / "first"), tmp_path / "again"
    made = run_command(
        "cmt-export", *small.split(), *["--target", "openvino", "--int8"], "--out", first
    )
    assert made[0] == 0
    status, _, error = run_command(
        "cmt-export", "--config", first / CONFIG, "--out", again, "--quiet"
    )
    assert status == 0, error
    assert "openvino/cmt_tiny.int8.bin" in held_apart(first)
    assert held_apart(again) == held_apart(first)
    made, remade = (open_bundle(folder).manifest for folder in (first, again))
    assert {**remade, "reports": []} == {**made, "reports": []}


def test_a_network_that_no_file_has_is_not_made_again_from_another(
    make_tiny: Callable[..., CMT], chosen: Chosen, tmp_path: Path
) -> None:
    given = ExportOptions("ti", ("openvino",), weights=in_memory(make_tiny("official")))
    path = tmp_path / CONFIG
    path.write_text(config_text(given), encoding="utf-8")
    found = chosen("--config", path)
    assert isinstance(found, ExportOptions), found
    with pytest.raises(InputError, match="no weights at"):
        resolve(found, needs_calibration=False)


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_has_what_all_have(name: str) -> None:
    module, function = main.COMMANDS[name][0].split(":")
    flags = {flag for one in getattr(import_module(module), function).params for flag in one.opts}
    assert {"--json", "--quiet", "--log-file", "--version", "--verbose"} <= flags


def logged(path: Path) -> list[str]:
    """The lines of a log without their times."""
    return [line.split(" ", 1)[1] for line in path.read_text().splitlines()]


def test_classes_are_logged_and_a_quiet_command_prints_none(
    stored: Path, run_command: Run, tmp_path: Path
) -> None:
    photo, log = stored / "golden" / "photo.jpg", tmp_path / "run.log"
    status, out, error = run_command("cmt-classify", stored, photo, "--log-file", log)
    assert status == 0
    assert logged(log) == [*error.splitlines(), *out.splitlines()]
    assert run_command("cmt-classify", stored, photo, "--quiet") == (0, "", "")
    assert run_command("cmt-classify", stored, photo, "--quiet", "--json")[1].startswith('{"image"')


def test_comparisons_are_quiet_but_for_what_fails(
    stored: Path, run_command: Run, tmp_path: Path
) -> None:
    assert run_command("cmt-report", stored, "--quiet") == (0, "", "")
    log = tmp_path / "run.log"
    status, out, error = run_command(
        "cmt-report", stored, "--quiet", "--require", "size<=0MB", "--log-file", log
    )
    assert (status, out) == (1, "")
    assert logged(log) == error.splitlines()


def test_verifying_prints_its_checks_as_json(stored: Path, run_command: Run) -> None:
    status, out, error = run_command("cmt-bench", stored, "--verify", "--json")
    checks = json.loads(out)["checks"]
    assert {check["passed"] for check in checks} <= {True, None}, error  # None: not run here
    assert any("int8" in check["name"] for check in checks)
    assert status == 0
    assert run_command("cmt-bench", stored, "--verify", "--quiet")[:2] == (0, "")


def test_a_training_is_quiet_and_logged(photos: Path, run_command: Run, tmp_path: Path) -> None:
    arguments = ["--data", photos, "--val", photos, "--schedule", "32:4:2", "--out", tmp_path / "a"]
    log = tmp_path / "run.log"
    status, out, error = run_command(
        "cmt-train", *arguments, "--quiet", "--json", "--log-file", log
    )
    assert status == 0, error
    assert json.loads(out)["weights"] == str(tmp_path / "a" / "cmt_ti.safetensors")
    assert all(line.startswith("warning: ") for line in error.splitlines())
    assert set(error.splitlines()) <= set(logged(log))


def test_a_log_has_what_is_said_with_times(chosen: Chosen, tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    line = chosen("--variant", "ti", "--target", "nothing", "--log-file", path, "--quiet")
    time, said = path.read_text().splitlines()[0].split(" ", 1)
    assert said == line
    assert time.startswith("20")
    unwritable = chosen("--variant", "ti", "--log-file", tmp_path / "no" / "run.log")
    assert "choose another" in str(unwritable)
