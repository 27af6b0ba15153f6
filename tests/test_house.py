"""What holds the house together: who may know whom, and one installed name."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cmt.targets.registry import TARGETS

ROOT = Path(__file__).parents[1]
ROOMS = (
    *("cmt", "calib_data", "targets", "quantize", "bundle", "report", "measure", "export"),
    *("training", "commands"),
)
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 500, 60


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "targets"])
def test_generic_code_compares_nothing_with_a_targets_name(room: str) -> None:
    names = "|".join(map(re.escape, TARGETS))
    compared = re.compile(
        rf"""[=!]=\s*["']({names})["']|["']({names})["']\s*(==|!=|in\b|not in\b)"""
    )
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sources(room)
        for line in path.read_text().splitlines()
        if compared.search(line) or (".endswith(" in line and "(simulated)" in line)
    ]
    assert found == []


def test_files_and_functions_stay_short() -> None:
    long = []
    for path in sources(*ROOMS, "benchmarks"):
        text = path.read_text()
        name = path.relative_to(ROOT)
        if len(text.splitlines()) > MOST_LINES:
            long.append(f"{name} has {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MOST_LINES_OF_A_FUNCTION:
                    long.append(f"{name}: {node.name} has {lines} lines")
    assert long == []


def test_no_two_modules_have_one_name() -> None:
    names: dict[str, list[str]] = {}
    for path in sources(*ROOMS, "benchmarks"):
        if path.name != "__init__.py":
            names.setdefault(path.stem, []).append(str(path.relative_to(ROOT)))
    twice = {name: paths for name, paths in names.items() if len(paths) > 1}
    assert twice == {}


def test_every_room_is_packaged_and_its_files_decide_what_resuming_takes_up() -> None:
    import cmt
    from cmt.files import sources_of

    assert {path.relative_to(ROOT) for path in sources_of(cmt)} == {
        path.relative_to(ROOT) for path in sources(*ROOMS)
    }


IN_THE_WAY = {
    "cli.py": "def export_command():\n    print('not yours')\n",
    "export/__init__.py": "raise RuntimeError('not yours')",
    "measure/__init__.py": "raise RuntimeError('not yours')",
    "training/__init__.py": "raise RuntimeError('not yours')",
    "quantize/__init__.py": "raise RuntimeError('not yours')",
    "cmt.py": "raise RuntimeError('not yours')",
    "cmt/__init__.py": "raise RuntimeError('not yours')",
}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with a plain install; what it depends on is lent to it."""
    folder = tmp_path_factory.mktemp("plain") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    source = folder.with_name("source")
    subprocess.run(["git", "clone", "--quiet", ROOT, source], check=True)
    install = [sys.executable, "-m", "pip", "--quiet", "--python", str(python), "install"]
    subprocess.run([*install, "--no-deps", str(source)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {"cmt"}
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(ours))
    return python


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_somebody_elses_modules_are_not_run(
    name: str,
    installed: Path,
    tiny_weights: Path,
    photos: Path,
    with_tiny: dict[str, str],
    tmp_path: Path,
) -> None:
    path = tmp_path / "theirs" / name
    path.parent.mkdir(parents=True)
    path.write_text(IN_THE_WAY[name])
    theirs = {**os.environ, "PYTHONPATH": str(tmp_path / "theirs")}

    def start(
        command: str, *arguments: str, environment: dict[str, str] = theirs
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [installed.with_name(command), *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    for command in ("cmt-export", "cmt-bench", "cmt-classify", "cmt-report", "cmt-train"):
        result = start(command, "--help")
        if name.startswith("cmt"):
            (line,) = result.stderr.splitlines()
            assert result.returncode == 2
            assert str(path) in line
        else:
            assert result.returncode == 0, result.stderr
            assert "Usage: cmt-" in result.stdout
    if name == "measure/__init__.py":  # which the processes that time files would meet first
        words = f"--variant tiny --weights {tiny_weights} --val-data {photos} --no-tune"
        words += " --bench-seconds 0.1 --target onnxruntime --out bundle"
        paths = os.pathsep.join((theirs["PYTHONPATH"], with_tiny["PYTHONPATH"]))
        result = start("cmt-export", *words.split(), environment={**theirs, "PYTHONPATH": paths})
        assert result.returncode == 0, result.stderr
