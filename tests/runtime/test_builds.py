"""The C++ library builds with any of its runtimes alone, and says which it leaves out and why."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUBS = Path(__file__).with_name("stubs")
CPU_RUNTIMES = ("-DCMT_OPENVINO=OFF", "-DCMT_ONNXRUNTIME=OFF")
NO_RUNTIME = (*CPU_RUNTIMES, "-DCMT_TENSORRT=OFF")
NO_CUDA_OF_THIS_MACHINE = (
    "-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON",
    "-DCMAKE_IGNORE_PATH=/usr/local/cuda/include;/usr/local/cuda/lib;/usr/local/cuda/lib64",
)
Configure = Callable[..., str]


def release(folder: Path, headers: str, *libraries: str) -> Path:
    """A folder as a release of TensorRT and CUDA has it, with these headers and empty libraries."""
    shutil.copytree(STUBS / headers / "include", folder / "include")
    shutil.copytree(STUBS / "cuda" / "include", folder / "include", dirs_exist_ok=True)
    (folder / "lib").mkdir()
    for name in libraries:
        (folder / "lib" / f"lib{name}.so").touch()
    return folder


def test_tensorrt_alone_compiles(tensorrt_runtime: Path, tmp_path: Path) -> None:
    command = [tensorrt_runtime / "cmt_check", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "is no bundle" in result.stderr


def test_no_runtime_at_all_compiles_and_is_warned_of(
    configure: Configure, compile_choice: Callable[[Path], None], tmp_path: Path
) -> None:
    said = configure(tmp_path, *NO_RUNTIME)
    assert "no backend found, so no file can be run" in said
    compile_choice(tmp_path)


@pytest.mark.parametrize(
    ("file", "option", "words"),
    [
        ("onnxruntime_cxx_api.h", "INCLUDE", "its library (libonnxruntime.so) is not found, give"),
        ("libonnxruntime.so", "LIBRARY", "its headers (onnxruntime_cxx_api.h) are not found, give"),
    ],
)
def test_half_an_onnxruntime_is_left_out_and_its_other_half_named(
    configure: Configure, tmp_path: Path, file: str, option: str, words: str
) -> None:
    """Wheels have the library alone, some distributions' packages the headers."""
    (tmp_path / file).touch()
    place = tmp_path if option == "INCLUDE" else tmp_path / file
    others = ("-DCMT_OPENVINO=OFF", "-DCMT_TENSORRT=OFF", "-DCMT_TOOLS=OFF")
    said = configure(tmp_path / "build", *others, f"-DCMT_ONNXRUNTIME_{option}={place}")
    assert f"without ONNX Runtime: {words}" in said


@pytest.mark.parametrize(
    ("headers", "libraries", "words"),
    [
        ("tensorrt86", ("nvinfer", "cudart"), "are older than TensorRT 10"),
        ("tensorrt10", ("nvinfer",), "without TensorRT: CUDA's library cudart is not found"),
        ("tensorrt10", ("cudart",), "without TensorRT: TensorRT's library is not found"),
        ("cuda", ("nvinfer", "cudart"), "without TensorRT: NvInferRuntime.h is not found"),
    ],
)
def test_a_tensorrt_that_is_left_out_is_said(
    configure: Configure, tmp_path: Path, headers: str, libraries: tuple[str, ...], words: str
) -> None:
    root = release(tmp_path / "release", headers, *libraries)
    roots = (f"-DCMT_TENSORRT_ROOT={root}", f"-DCMT_CUDA_ROOT={root}")
    said = configure(tmp_path / "build", *CPU_RUNTIMES, *roots, *NO_CUDA_OF_THIS_MACHINE)
    assert words in said
    assert "cmt_runtime: TensorRT /" not in said
    source = ROOT / "runtime" / "cpp"
    command = ["cmake", "-S", source, "-B", tmp_path / "build", "-DCMT_TENSORRT=ON"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0, "what is asked for is a must"


def test_a_warning_breaks_nobody_elses_build(configure: Configure, tmp_path: Path) -> None:
    configure(tmp_path, *NO_RUNTIME, "-DCMT_WERROR=OFF")
    assert "-Werror" not in (tmp_path / "compile_commands.json").read_text()
