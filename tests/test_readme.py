"""What the README and the documentation show works as shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import cli
from training.recipe import main

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
README = PAGES[0].read_text()
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(r"^```(\w+.*)\n((?:.|\n)*?)^```", page.read_text(), re.MULTILINE)
]
NEEDS_HARDWARE = 'console title="Needs a '
BENCHMARK = "python benchmarks/cpu.py "
CPP = ("cmake ", "build/runtime/")
COMMANDS = list(
    dict.fromkeys(
        command.removeprefix("$ ").split("  #")[0].strip()
        for language, block in BLOCKS
        if language == "console"
        for command in block.replace("\\\n", " ").splitlines()
        if command.startswith("$ ")
    )
)


def test_python_examples_run() -> None:
    examples = [block for language, block in BLOCKS if language == "python"]
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("cmt-")])
def test_command_lines_are_accepted(command: str) -> None:
    name, *arguments = shlex.split(command)
    commands = {"cmt-export": cli.export_cli, "cmt-bench": cli.bench_cli, "cmt-train": main}
    commands["cmt-report"] = cli.report_cli
    commands[name].make_context(name, arguments)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(BENCHMARK)])
def test_benchmark_command_lines_are_accepted(command: str, tmp_path: Path) -> None:
    from benchmarks.cpu import main as benchmark

    # Its options open files that must exist; here they are empty ones.
    arguments = [
        str(tmp_path / word) if word.endswith(".json") else word
        for word in shlex.split(command)[2:]
    ]
    (tmp_path / "results.json").touch()
    benchmark.make_context("cpu.py", arguments)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_targets_exist(command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_command_is_covered_by_one_of_these_tests() -> None:
    assert COMMANDS
    covered = ("cmt-export ", "cmt-bench ", "cmt-report ", "cmt-train ", "make ", BENCHMARK, *CPP)
    assert [command for command in COMMANDS if not command.startswith(covered)] == []
    languages = {language for language, _ in BLOCKS if language.startswith("console")}
    assert all(one == "console" or one.startswith(NEEDS_HARDWARE) for one in languages)
    # Those of the C++ tools are run by tests/runtime/test_tools.py.
    assert {command.split()[0] for command in COMMANDS if command.startswith(CPP)} == {
        "cmake",
        *(f"build/runtime/{tool}" for tool in ("cmt_check", "cmt_classify", "cmt_bench")),
    }


def test_the_cpp_example_is_the_one_that_is_built() -> None:
    shown = [block for language, block in BLOCKS if language == "cpp"]
    assert shown == [(ROOT / "runtime" / "cpp" / "example" / "main.cpp").read_text()]


def test_folders_of_the_layout_exist() -> None:
    layout = README.split("## Layout")[1].split("```")[1]
    for name in re.findall(r"^(\w+[/.]\w*)", layout, re.MULTILINE):
        assert (ROOT / name).exists()


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    mkdocs = pytest.importorskip("mkdocs.commands.build", reason="needs the docs extra: make docs")
    from mkdocs.config import load_config

    # Strict: a page that is left out, a link or an anchor that leads nowhere is an error.
    mkdocs.build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    assert (tmp_path / "quick_start.html").is_file()
