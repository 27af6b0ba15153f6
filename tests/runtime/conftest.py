"""The C++ runtime, built once; see `make runtime`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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


@pytest.fixture(scope="session")
def runtime() -> Path:
    """The build folder of runtime/cpp, against the OpenVINO wheel."""
    reason = missing_tools()
    if reason is not None:
        pytest.skip(reason)
    # The environment that the tests run in stands for the one that make would set up.
    folder = os.environ.get("RUNTIME", "build/runtime")  # `make sanitize` has its own
    variables = [f"BIN={Path(sys.executable).parent}", "INSTALLED=", f"RUNTIME={folder}"]
    command = ["make", "--silent", "runtime", *variables]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return ROOT / folder
