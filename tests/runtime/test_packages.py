"""What is installed: other projects, plug-ins and packages take the library, static or shared."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from documented import commands

import cmt

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "runtime" / "cpp" / "example"
CALL = """
import ctypes, sys
plugin = ctypes.CDLL(sys.argv[1])
print(plugin.best_class(*(word.encode() for word in sys.argv[2:])))
"""


def said(*command: str | Path, **variables: str) -> str:
    """What a command printed, which must succeed."""
    result = subprocess.run(
        command,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def needed(tool: str) -> str:
    """The path of a tool that not every machine has."""
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"needs {tool} (on Debian: apt install pkgconf dpkg)")
    return found


def asked(plugin: Path, bundle: Path, artefact: str) -> int:
    """What a plug-in answers to the golden photo, opened with dlopen by a process of its own."""
    photo = bundle / "golden" / "photo.jpg"
    return int(said(sys.executable, "-c", CALL, plugin, bundle, artefact, photo))


def exported(library: Path) -> set[str]:
    """The functions that a shared library shows."""
    lines = said("nm", "--dynamic", "--defined-only", "--demangle", library).splitlines()
    return {line.split(maxsplit=2)[2] for line in lines if line.split()[1] == "T"}


@pytest.fixture(scope="module")
def shared(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared library as `cmake --install` puts it down."""
    if runtime.name == "sanitized":
        pytest.skip("what other projects link would need the sanitizers too")
    prefix = tmp_path_factory.mktemp("prefix")
    (install,) = commands("cmake --install")
    places = {"build/runtime": runtime, "/opt/cmt": prefix}
    said(*(places.get(word, word) for word in shlex.split(install)))
    return prefix


def test_another_project_finds_the_installed_library(
    has_onnxruntime: bool, shared: Path, stored: Path, tmp_path: Path
) -> None:
    said("cmake", "-S", EXAMPLE, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={shared}")
    said("cmake", "--build", tmp_path)
    photo = stored / "golden" / "photo.jpg"
    for program in ("example", "example_in_c"):
        assert said(tmp_path / program, stored, photo).startswith(f"{photo}: blue, 0.")
        for arguments in ((), (stored,), (tmp_path / "none", photo)):
            command = [tmp_path / program, *arguments]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            assert result.returncode == 2
            assert len(result.stderr.splitlines()) == 1
    plugin = tmp_path / "libplugin.so"
    assert exported(plugin) == {"best_class"}
    assert asked(plugin, stored, "openvino/int8") == 0
    expected = 0 if has_onnxruntime else -1
    assert asked(plugin, stored, "onnxruntime/int8") == expected
    installed = said(shared / "bin" / "cmt_check", stored)
    assert "ok      preprocessing" in installed


def test_a_shared_library_shows_its_interface_alone(shared: Path) -> None:
    library = shared / "lib" / "libcmt_runtime.so"
    assert library.resolve().name == f"libcmt_runtime.so.{cmt.__version__}"
    shown = {name for name in exported(library) if "cmt" in name}
    assert "cmt_open" in shown
    assert "cmt::Classifier::share() const" in shown
    own = ("cmt_", "cmt::Classifier::", "cmt::Error::", "cmt::InputError::", "cmt::MachineError::")
    functions = ("cmt::decode_image(", "cmt::read_image(", "cmt::doubts")
    assert {name for name in shown if not name.startswith((*own, *functions))} == set()


def test_a_debian_package_has_the_library_and_its_licence(runtime: Path, tmp_path: Path) -> None:
    if runtime.name == "sanitized":
        pytest.skip("nobody packages sanitizers")
    dpkg = needed("dpkg-deb")
    said("cpack", "--config", runtime / "CPackConfig.cmake", "-B", tmp_path)
    (package,) = tmp_path.glob(f"cmt-runtime_{cmt.__version__}_*.deb")
    said(dpkg, "--extract", package, tmp_path / "root")
    usr = tmp_path / "root" / "usr"
    licence = (usr / "share" / "doc" / "cmt-runtime" / "copyright").read_text()
    assert licence.startswith((ROOT / "LICENSE").read_text())
    assert "Niels Lohmann" in licence
    assert (usr / "include" / "cmt" / "cmt.h").is_file()
    assert len(list((usr / "lib").glob("libcmt_runtime.so*"))) == 3
    assert said(usr / "bin" / "cmt_check", "--help").startswith("usage: cmt_check")
    assert "libssl-dev" in said(dpkg, "--field", package, "Depends")


def test_openvino_alone_compiles_and_a_plug_in_takes_the_static_library(
    configure: Callable[..., str],
    in_one: tuple[str, ...],
    stored: Path,
    tmp_path: Path,
) -> None:
    packages = Path(sysconfig.get_path("purelib"))
    if not (packages / "openvino" / "cmake").is_dir():
        pytest.skip("needs OpenVINO's wheel")
    pkg_config = needed("pkg-config")
    build, prefix = tmp_path / "build", tmp_path / "prefix"
    openvino = f"-DOpenVINO_DIR={packages / 'openvino' / 'cmake'}"
    others = (*in_one, "-DCMT_ONNXRUNTIME=OFF", "-DCMT_TENSORRT=OFF", "-DCMT_TOOLS=OFF")
    assert "cmt_runtime: OpenVINO 20" in configure(build, openvino, *others)
    said("cmake", "--build", build)
    said("cmake", "--install", build, "--prefix", prefix)
    path = str(next(prefix.rglob("cmt_runtime.pc")).parent)
    asks = (pkg_config, "--cflags", "--libs", "cmt_runtime")
    flags = shlex.split(said(*asks, PKG_CONFIG_PATH=path))
    plugin = tmp_path / "plugin.so"
    compile_it = ("c++", "-std=c++17", "-shared", "-fPIC", EXAMPLE / "plugin.cpp")
    said(*compile_it, "-o", plugin, *flags)
    assert exported(plugin) == {"best_class"}
    assert asked(plugin, stored, "openvino/int8") == 0
    assert asked(plugin, tmp_path, "openvino/int8") == -1
