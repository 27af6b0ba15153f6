"""The recipes for CI keep the official schemas, and what they run are commands of this version."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from documented import DOCS
from ruamel.yaml import YAML

from cmt.commands.main import COMMANDS
from cmt.report.policy import parse_policy

GITHUB, GITLAB = (DOCS / "guide" / "ci" / name for name in ("github_actions.yml", "gitlab.yml"))
SCHEMAS = {GITHUB: "vendor.github-workflows", GITLAB: "vendor.gitlab-ci"}


def keeps(schema: str, path: Path) -> bool:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def lines_of(recipe: Path) -> list[str]:
    """What a recipe's shell is given, in order."""
    content = YAML(typ="safe").load(recipe)
    if recipe == GITLAB:
        return list(content["export"]["script"])
    return [step["run"] for step in content["jobs"]["export"]["steps"] if "run" in step]


@pytest.mark.parametrize("recipe", SCHEMAS, ids=lambda path: path.stem)
def test_a_recipe_keeps_the_official_schema(recipe: Path, tmp_path: Path) -> None:
    assert keeps(SCHEMAS[recipe], recipe)
    broken = tmp_path / recipe.name
    broken.write_text(recipe.read_text().replace("export:", "export: 3", 1))
    assert not keeps(SCHEMAS[recipe], broken)


def test_both_recipes_install_export_verify_and_decide() -> None:
    shown = [line for line in lines_of(GITHUB) if line.startswith(("pip ", "cmt-"))]
    assert lines_of(GITLAB) == shown
    assert [line.split()[0] for line in shown] == ["pip", "cmt-export", "cmt-bench", "cmt-report"]


def test_what_a_recipe_runs_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the log goes
    for line in lines_of(GITLAB)[1:]:
        name, *arguments = shlex.split(line)
        module, function = COMMANDS[name][0].split(":")
        getattr(import_module(module), function).make_context(name, arguments)
        if "--require" in arguments:
            parse_policy(arguments[arguments.index("--require") + 1])
