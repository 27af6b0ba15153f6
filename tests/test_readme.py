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
    {"cmt-export": cli.export_cli, "cmt-train": main}[name].make_context(name, arguments)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_targets_exist(command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_command_is_covered_by_one_of_these_tests() -> None:
    assert COMMANDS
    assert all(command.startswith(("cmt-export ", "cmt-train ", "make ")) for command in COMMANDS)


def test_folders_of_the_layout_exist() -> None:
    layout = README.split("## Layout")[1].split("```")[1]
    for name in re.findall(r"^(\w+[/.]\w*)", layout, re.MULTILINE):
        assert (ROOT / name).exists()
