"""The C++ runtime, built once; see `make runtime`.

RUNTIMES names the builds that its tests run on, `plain` alone unless told otherwise; tests of many
cases that run the same lines take the first of them (`any_runtime`). `sanitized` aborts at every
leak of ours, memory error and undefined behaviour. `emulated` is of aarch64, which
tests/endurance/arm.sh makes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "plain": "build/runtime",
    "sanitized": "build/sanitized",
    "emulated": "build/arm/emulated",
}
STUBS = Path(__file__).with_name("stubs")
RUNTIMES = os.environ.get("RUNTIMES", "plain").split()
MadeOnce = Callable[[str, Callable[[Path], object]], Path]
# The sources in one file compile in half the time, and do not see that a header is missing, which
# the plain build shows.
IN_ONE = ("-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_UNITY_BUILD_BATCH_SIZE=0")
IN_ONE_FLAGS = "-Wno-subobject-linkage"
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


@pytest.fixture(scope="session", params=RUNTIMES)
def runtime(request: pytest.FixtureRequest, made_once: MadeOnce) -> Iterator[Path]:
    """The build folder of runtime/cpp, against the OpenVINO wheel."""
    with _built(request.param, made_once) as folder:
        yield folder


@pytest.fixture(scope="session")
def any_runtime(made_once: MadeOnce) -> Iterator[Path]:
    """The same, of one build alone."""
    with _built(RUNTIMES[0], made_once) as folder:
        yield folder


@contextmanager
def _built(name: str, made_once: MadeOnce) -> Iterator[Path]:
    reason = missing_tools()
    if reason is not None:
        pytest.skip(reason)
    if name != "emulated":
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
    options = "-DCMT_WERROR=ON"
    if name == "plain":
        options += f" -DCMT_ONNXRUNTIME=ON -DCMT_ONNXRUNTIME_ROOT={_onnxruntime()}"
    if name == "sanitized":
        # -O1 compiles in half the time and checks the same accesses. GCC's manual warns of false
        # -Wmaybe-uninitialized beside sanitizers; its own <regex> is one, so the plain build asks.
        options += " -DCMT_SANITIZERS=address,undefined -DCMAKE_BUILD_TYPE=None"
        flags = f"-O1 -g1 -Wno-maybe-uninitialized {IN_ONE_FLAGS}"
        options += f" '-DCMAKE_CXX_FLAGS={flags}' {' '.join(IN_ONE)}"
    options += " -DBUILD_SHARED_LIBS=ON"  # the static one is made of the same objects
    run_checked("make", "--silent", "runtime", *variables, f"RUNTIME_OPTIONS={options}")


def _onnxruntime() -> Path:
    """The library of ONNX Runtime's wheel, with the headers of `stubs`, as a release has them."""
    import onnxruntime

    folder = ROOT / "build" / "onnxruntime"
    shutil.copytree(STUBS / "onnxruntime" / "include", folder / "include", dirs_exist_ok=True)
    (folder / "lib").mkdir(exist_ok=True)
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # as linkers and loaders ask for it
        (folder / "lib" / name).unlink(missing_ok=True)
        (folder / "lib" / name).symlink_to(library)
    return folder


def run_checked(*command: str | Path) -> str:
    """Runs a command, which must succeed; returns all that it said."""
    result = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(scope="session")
def configure() -> Callable[..., str]:
    """`configure(build, *options)`: what CMake says to runtime/cpp, every warning an error."""
    reason = missing_tools()
    if reason is not None:
        pytest.skip(reason)
    return _configure


def _configure(build: Path, *options: str) -> str:
    json_headers = Path(sysconfig.get_path("purelib")) / "nlohmann_json" / "include"
    common = ("-DCMT_WERROR=ON", "-DCMAKE_BUILD_TYPE=None", f"-DCMT_JSON_INCLUDE={json_headers}")
    source = ROOT / "runtime" / "cpp"
    return " ".join(run_checked("cmake", "-S", source, "-B", build, *common, *options).split())


def stub_libraries(folder: Path) -> None:
    """The TensorRT and CUDA of `stubs`, with their headers, as one release in `folder`."""
    for headers in (STUBS / "tensorrt10" / "include", STUBS / "cuda" / "include"):
        shutil.copytree(headers, folder / "include", dirs_exist_ok=True)
    (folder / "lib").mkdir()
    for library in ("nvinfer", "cudart"):
        out = folder / "lib" / f"lib{library}.so"
        include = f"-I{folder / 'include'}"
        run_checked("c++", "-std=c++17", "-shared", "-fPIC", include, STUBS / "stub.cpp", "-o", out)


@pytest.fixture(scope="session")
def tensorrt_runtime(made_once: MadeOnce) -> Path:
    """The build folder of runtime/cpp with TensorRT alone, a stand-in of it; tools included."""
    reason = missing_tools()
    if reason is not None:
        pytest.skip(reason)
    return made_once("tensorrt-runtime", _build_with_stubs)


def _build_with_stubs(folder: Path) -> None:
    stub_libraries(folder / "stubs")
    others = ("-DCMT_OPENVINO=OFF", "-DCMT_ONNXRUNTIME=OFF")
    roots = (f"-DCMT_TENSORRT_ROOT={folder / 'stubs'}", f"-DCMT_CUDA_ROOT={folder / 'stubs'}")
    in_one = (*IN_ONE, f"-DCMAKE_CXX_FLAGS={IN_ONE_FLAGS}")
    _configure(folder, *others, "-DCMT_TENSORRT=ON", *roots, *in_one)
    run_checked("cmake", "--build", folder, "--parallel", "2")


@pytest.fixture(scope="session")
def compile_choice() -> Callable[[Path], None]:
    """`compile_choice(build)`: the one source that knows which runtimes a build has, compiled."""
    return lambda build: run_checked("cmake", "--build", build, "--target", "src/backend.cpp.o")


@pytest.fixture(scope="session")
def in_one() -> tuple[str, ...]:
    """What has CMake compile the sources in one file."""
    return (*IN_ONE, f"-DCMAKE_CXX_FLAGS={IN_ONE_FLAGS}")


@pytest.fixture
def has_onnxruntime(runtime: Path) -> bool:
    """Whether the build has that backend."""
    return "CMT_ONNXRUNTIME_LIBRARY:FILEPATH=/" in (runtime / "CMakeCache.txt").read_text()
