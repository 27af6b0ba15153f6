"""What the README and the documentation show works as shown.

Every command is run, on small inputs: docs/design.md says which. Those of the C++ tools and of the
benchmarks are run by tests/runtime/test_tools.py and tests/benchmarks.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from documented import DOCS, GUIDE, NOTEBOOK, PAGES, ROOT, blocks, commands

from cmt.bundle.reader import open_bundle
from cmt.calib_data.preprocessing import Preprocessing
from cmt.checkpoints import load_model
from cmt.commands import main
from cmt.commands.cmt_export import export_cli
from cmt.commands.cmt_train import train_cli
from cmt.export.options import ExportOptions
from cmt.export.pipeline import Bundle
from cmt.layouts import to_public_layout
from cmt.option import options_of
from cmt.report.document import report_of
from cmt.targets.registry import TARGETS

MOST_WORDS = 600
"""Of a page of the guide: what is read in three minutes."""
NEEDS_HARDWARE = 'console title="Needs a'
BENCHMARK = "python benchmarks/"
CPP = ("cmake ", "build/runtime/")
# Without what `small` replaces: made through Python, with a few other options, by tests that look
# at the result. Exports cost seconds, so their command lines are only parsed here.
RUN_ELSEWHERE = (
    # the fixture `bundle`
    "cmt-export --target openvino --target tensorrt --target onnxruntime --fp16 --int8",
    # the fixture `uint8_bundle`
    "cmt-export --target openvino --embed-preprocess",
    # tests/export/test_pipeline.py
    "cmt-export --target openvino --output features --img-size 192x256",
    # tests/measure/test_tune.py
    "cmt-export --target openvino --int8 --tune",
    # tests/export/test_preflight.py
    "cmt-export --target tensorrt --fp16 --int8 --dry-run",
    # tests/export/test_pipeline.py
    "cmt-export --target openvino --int8 --sensitivity",
    # tests/export/test_resume.py
    "cmt-export --target openvino --target tensorrt --int8 --qat 3",
    # the fixture `uint8_bundle`
    "cmt-export --target openvino --int8 --sign key.pem",
)
# CI runs these, and the tests of the C++ library the last.
MAKE = (
    "make demo",
    "make test",
    "make docs",
    "make runtime",
    "PIP_CONSTRAINT=constraints.txt make test",
)
# tests/measure/test_signature.py makes keys and trusts a bundle.
KEYS = ("openssl ", "cmt-bench bundle --verify --trust key.pub.pem")


@pytest.mark.filterwarnings("ignore:demo. the classifier is new")
def test_python_examples_run(
    openvino_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(to_public_layout(load_model("ti", num_classes=3)), "flowers.pth")
    (tmp_path / "bundle").symlink_to(openvino_bundle)
    shutil.copy(openvino_bundle / "golden" / "photo.jpg", tmp_path)
    exports: list[ExportOptions] = []

    def accept(options: ExportOptions, _: object) -> Bundle:
        exports.append(options)
        return Bundle(options.bundle, {"gates": {"failures": []}})

    monkeypatch.setattr("cmt.export.pipeline.export", accept)
    examples = [block for language, block in blocks() if language == "python"]
    assert examples
    for example in examples:
        exec(compile(example, "example", "exec"), {})
    (asked,) = exports
    assert (asked.variant, asked.targets, asked.out) == ("ti", ("openvino",), Path("bundle"))
    flowers = load_model("ti", "flowers.safetensors")
    assert json.loads(flowers.metadata["labels"]) == ["daisy", "rose", "tulip"]
    prepared = Preprocessing.for_model((160, 160), flowers.metadata)
    assert prepared == Preprocessing((160, 160), (182, 182), (0.5,) * 3, (0.5,) * 3)


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit status of a command in this process."""
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as stop:
        main.run(shlex.split(command)[0])
    return int(stop.value.code or 0)


def demo() -> str:
    """The command of `make demo`, to where there is a TensorRT for this machine."""
    recipe = (ROOT / "Makefile").read_text().split("\ndemo:")[1].split("\n\n")[0]
    command = " ".join(recipe.split("$(BIN)/")[1].replace("\\\n", " ").split())
    tensorrt = "--target tensorrt" if TARGETS["tensorrt"].missing() is None else ""
    return command.replace("$(TENSORRT)", tensorrt).replace("$(DEMO)", "demo")


def without_replaced(command: str) -> str:
    """What of a command `small` does not replace; commands alike in it make the same bundle."""
    options = "variant|weights|calib-data|val-data|max-drop|gpu-arch|out"
    return re.sub(rf" --(({options}) \S+|resume|force)", "", command)


def run_here(shown: list[str]) -> list[str]:
    """One of those that make the same bundle, and none that another test makes at some cost."""
    different = {without_replaced(command): command for command in shown}
    for elsewhere in RUN_ELSEWHERE:
        del different[elsewhere]
    return list(different.values())


@pytest.mark.parametrize("command", [*commands("cmt-export "), demo()])
def test_exports_are_accepted(command: str) -> None:
    export_cli.make_context("cmt-export", shlex.split(command)[1:])


@pytest.mark.parametrize("command", run_here([*commands("cmt-export "), demo()]))
def test_exports_make_a_bundle(
    command: str,
    resumable: Callable[[Path], Path],
    small: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = [name for name in TARGETS if TARGETS[name].missing() is not None]
    if any(f"--target {name}" in command for name in missing):
        pytest.skip(f"{missing[0]} has no wheel for this machine")
    words = shlex.split(command)
    out = tmp_path / (words[words.index("--out") + 1] if "--out" in words else "cmt_tiny")
    monkeypatch.chdir(tmp_path)
    resumable(out)
    assert run(f"{command} {small}", monkeypatch) == 0
    made = open_bundle(out)
    asked = {word for before, word in pairwise(words) if before == "--target"}
    assert {artefact["target"] for artefact in made.artefacts} == asked
    for precision in ("fp16", "int8"):
        given = any(artefact["precision"] == precision for artefact in made.artefacts)
        assert given or f"--{precision}" not in words


@pytest.mark.parametrize("command", [c for c in commands("cmt-bench ") if c not in KEYS])
def test_bundles_are_measured(
    command: str,
    openvino_bundle: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(openvino_bundle, tmp_path / "bundle")
    (tmp_path / "photos").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    assert run(f"{command} --seconds 0.1", monkeypatch) == 0
    assert ("--verify" in command) is (
        "machines" not in report_of(open_bundle(tmp_path / "bundle"))
    )


@pytest.mark.parametrize("command", commands("cmt-classify "))
def test_photos_are_classified(
    command: str,
    openvino_bundle: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bundle").symlink_to(openvino_bundle)
    (tmp_path / "photos").symlink_to(photos)
    shutil.copy(openvino_bundle / "golden" / "photo.jpg", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run(command, monkeypatch) == 0
    assert len(capsys.readouterr().out.splitlines()) == (20 if "photos" in command else 3)


@pytest.mark.parametrize("command", commands("cmt-report "))
def test_reports_are_compared(
    command: str,
    bundle: Bundle,
    uint8_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = uint8_bundle if "--for" in command else bundle
    for name in ("bundle", "cmt_ti", "other"):
        (tmp_path / name).symlink_to(shown.path)
    monkeypatch.chdir(tmp_path)
    status = run(command, monkeypatch)
    output = capsys.readouterr()
    if "--for" in command:
        assert (tmp_path / "bundle-triton" / "client.py").is_file()
        assert "TensorRT-RTX" in output.err or "tensorrt" not in output.err
        return
    assert "openvino" in output.out
    # Whether the policy is kept is the small network's and this machine's affair.
    assert status == (1 if "failed: " in output.err else 0)
    assert status == 0 or "--require" in command
    assert ("--out" in command) is (tmp_path / "comparison" / "comparison.html").is_file()


def test_networks_are_trained(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "red" / "broken.jpg").unlink()
    small = ["--data", "photos", "--val", "photos", "--schedule", "32:4:2"]
    shown = commands("cmt-train ", pages=GUIDE)
    assert len(shown) == 2
    for command in shown:  # the second starts from what the first made
        words = shlex.split(command)
        result = CliRunner().invoke(train_cli, [*words[1:], *small], catch_exceptions=False)
        assert result.exit_code == 0
        assert (tmp_path / words[words.index("--out") + 1] / "cmt_ti.safetensors").is_file()


@pytest.mark.parametrize("command", commands("cmt-train ", pages=NOTEBOOK))
def test_trainings_are_accepted(command: str) -> None:
    train_cli.make_context("cmt-train", shlex.split(command)[1:])


def test_every_command_is_run_by_some_test_or_marked() -> None:
    tested = (
        "cmt-export ",
        "cmt-bench ",
        "cmt-classify ",
        "cmt-report ",
        "cmt-train ",
        BENCHMARK,
        *CPP,
    )
    assert set(commands()) == {*commands(*tested), *commands(*MAKE), *commands(*KEYS)}
    ci = (ROOT / ".ci" / "run").read_text()
    assert "make test" in ci
    assert "make docs" in ci
    languages = {language for language, _ in blocks() if language.startswith("console")}
    assert all(one == "console" or one.startswith(NEEDS_HARDWARE) for one in languages)


@pytest.mark.parametrize("language", ["cpp", "c"])
def test_the_cpp_example_is_the_one_that_is_built(language: str) -> None:
    shown = [block for shown_as, block in blocks() if shown_as == language]
    assert shown == [(ROOT / "runtime" / "cpp" / "example" / f"main.{language}").read_text()]


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.stem)
def test_pages_of_the_guide_are_read_in_three_minutes_and_keep_no_diary(page: Path) -> None:
    text = page.read_text()
    assert len(text.split()) <= MOST_WORDS
    own = re.sub(r"\(https?://[^)]*\)", "", text)  # other projects' pages are sources
    assert re.findall(r"\b20\d\d-\d\d|#\d+\b|\bissue|not kept|session", own) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_pages_name_exist(page: Path) -> None:
    named = re.findall(r"`(?:python )?([a-z_]+/[\w/]+\.(?:py|[ch]pp|toml|json))", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_links_of_the_readme_lead_somewhere() -> None:
    linked = re.findall(r"\]\((?!https:)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert linked
    assert [name for name in linked if not (ROOT / name).exists()] == []


def test_the_drawn_rooms_are_those_that_imports_are_held_to() -> None:
    drawn = re.findall(r"^│ ([^│]+) │", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    held = (ROOT / "pyproject.toml").read_text().split("\nlayers = [")[1].split("]")[0]
    rows = re.findall(r'"([^"]+)"', held)
    assert [row.strip().split(", ") for row in drawn] == [row.split(" | ") for row in rows]


def test_the_reference_has_every_option_and_public_name() -> None:
    import reference_pages

    page = reference_pages.commands_page()
    for name, (place, _) in main.COMMANDS.items():
        module, function = place.split(":")
        section = page.split(f"## {name}\n")[1].split("\n## ")[0]
        for parameter in getattr(import_module(module), function).params:
            assert f"`{parameter.opts[0]}" in section or parameter.param_type_name == "argument"
    python = reference_pages.python_page()
    for name in (
        "cmt.Classifier",
        "cmt.load_model",
        "cmt.rewrite_for_inference",
        "cmt.export.export",
    ):
        assert f"\n## {name}\n" in python
    for field in options_of(ExportOptions):
        assert f"\n| `{field}` |" in python


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    mkdocs = pytest.importorskip("mkdocs.commands.build", reason="needs the docs extra: make docs")
    from mkdocs.config import load_config

    # Strict: a page that is left out, a link or an anchor that leads nowhere is an error.
    mkdocs.build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    assert (tmp_path / "guide" / "quick_start.html").is_file()
    assert "--max-drop" in (tmp_path / "reference" / "commands.html").read_text()
    assert list(tmp_path.rglob("*.py")) == []
