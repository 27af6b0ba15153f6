"""The tests once more with the lowest version of every dependency that pyproject.toml allows.

    python tests/endurance/lowest_versions.py [--folder DIR] [--python COMMAND] [TESTS...]

Makes an environment where all that the export needs is at its lower bound, prints what was
installed, and runs the tests that need nothing beyond it. A bound is right if they pass.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[2]
TESTS = (
    "tests/calib_data tests/cmt tests/export tests/quantize tests/test_cli.py "
    "tests/measure/test_bench.py tests/measure/test_bundle.py tests/measure/test_report.py "
    "tests/measure/test_compare.py"
)
TEST_TOOLS = (
    "pytest>=8",
    "pytest-xdist>=3.6",
    "hypothesis>=6",
    "cryptography>=42",
    "cyclonedx-python-lib[json-validation]>=8",
)


def lower_bounds() -> Iterator[str]:
    """`name==version.*`, a bound's last patch, of the base dependencies and the export extra's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for name in ("openvino", "onnxruntime", "charts", "export"):
        yield from map(_pinned, (d for d in extras[name] if not d.startswith("cmt-export")))
    yield from map(_pinned, project["dependencies"])


def _pinned(requirement: str) -> str:
    requirement, _, marker = requirement.partition(";")
    name, version = re.fullmatch(r"([\w-]+)[>=]=([\d.]+)", requirement.strip()).groups()
    return f"{name}=={version}.*" + (f"; {marker.strip()}" if marker else "")


def main() -> None:
    """Make the environment, run the tests, exit with their status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "lowest")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("tests", nargs="*", default=TESTS.split())
    given = parser.parse_args()
    subprocess.run([given.python, "-m", "venv", given.folder], check=True)
    constraints = given.folder / "constraints.txt"
    constraints.write_text("\n".join(lower_bounds()) + "\n")
    python = given.folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", constraints]
    subprocess.run([*install, "--editable", f"{ROOT}[export]", *TEST_TOOLS], check=True)
    subprocess.run([python, "-m", "pip", "list", "--format=freeze"], check=True)
    sys.exit(subprocess.run([python, "-m", "pytest", *given.tests], cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
