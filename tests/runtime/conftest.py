"""The C++ runtime, built once; see `make runtime`.

RUNTIMES names the builds that its tests run on, `plain` alone unless told otherwise. `sanitized`
aborts at every leak of ours, memory error and undefined behaviour.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"plain": "build/runtime", "sanitized": "build/sanitized"}
HEADERS = "#include <cstdio>\n#include <jpeglib.h>\n#include <png.h>\n#include <openssl/evp.h>\n"


def missing_tools() -> str | None:
    """What the C++ build needs and this machine lacks."""
    for tool in ("cmake", "make", "c++"):
        if shutil.which(tool) is None:
            return f"needs {tool} (on Debian: apt install cmake make g++)"
    command = ["c++", "-x", "c++", "-fsyntax-only", "-"]
    if subprocess.run(command, input=HEADERS, text=True, capture_output=True).returncode != 0:
        return "needs headers (on Debian: apt install libjpeg-dev libpng-dev libssl-dev)"
    return None


@pytest.fixture(scope="session", params=os.environ.get("RUNTIMES", "plain").split())
def runtime(
    request: pytest.FixtureRequest, made_once: Callable[[str, Callable[[Path], object]], Path]
) -> Iterator[Path]:
    """The build folder of runtime/cpp, against the OpenVINO wheel."""
    reason = missing_tools()
    if reason is not None:
        pytest.skip(reason)
    name = request.param
    made_once(f"{name}-runtime", lambda _: _build(name))
    with pytest.MonkeyPatch.context() as patch:
        if name == "sanitized":
            patch.setenv("TBB_ENABLE_SANITIZERS", "1")
            known = Path(__file__).with_name("known_leaks.txt")
            patch.setenv("LSAN_OPTIONS", f"suppressions={known}:print_suppressions=0")
        yield ROOT / FOLDERS[name]


def _build(name: str) -> None:
    # The environment that the tests run in stands for the one that make would set up.
    variables = [f"BIN={Path(sys.executable).parent}", "INSTALLED=", f"RUNTIME={FOLDERS[name]}"]
    if name == "sanitized":
        # -O1 compiles in half the time and checks the same accesses.
        variables.append(
            "RUNTIME_OPTIONS=-DCMT_SANITIZERS=address,undefined -DCMAKE_BUILD_TYPE=None "
            "'-DCMAKE_CXX_FLAGS=-O1 -g1'"
        )
    command = ["make", "--silent", "runtime", *variables]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
