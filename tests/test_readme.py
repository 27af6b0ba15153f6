"""What the README shows works as shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import cli
from training.recipe import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
CPP = ("cmake ", "build/runtime/")
COMMANDS = [
    command.removeprefix("$ ").split("  #")[0].strip()
    for language, block in BLOCKS
    if language == "console"
    for command in block.replace("\\\n", " ").splitlines()
    if command.startswith("$ ")
]


def test_python_examples_run() -> None:
    examples = [block for language, block in BLOCKS if language == "python"]
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("cmt-")])
def test_command_lines_are_accepted(command: str) -> None:
    name, *arguments = shlex.split(command)
    commands = {"cmt-export": cli.export_cli, "cmt-bench": cli.bench_cli, "cmt-train": main}
    commands[name].make_context(name, arguments)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_targets_exist(command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_command_is_covered_by_one_of_these_tests() -> None:
    assert COMMANDS
    covered = ("cmt-export ", "cmt-bench ", "cmt-train ", "make ", *CPP)
    assert all(command.startswith(covered) for command in COMMANDS)
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
