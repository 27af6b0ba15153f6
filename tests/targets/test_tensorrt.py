"""TensorRT: what is found, what is refused, and that engines come out."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tensorrt_double import VERSIONS, Machine
from whole_recipe import quantize_onnx

from cmt.errors import GateError, InputError
from cmt.files import sha256_file
from cmt.quantize.half import to_fp16
from cmt.quantize.recipe import EXPLICIT, RECIPES
from cmt.targets.tensorrt.build import BuildSettings, build_engine
from cmt.targets.tensorrt.device import Gpu
from cmt.targets.tensorrt.library import (
    DEFAULT_ARCHS,
    availability,
    not_for_here,
    parse_archs,
    read_engine,
)
from cmt.targets.tensorrt.record import read_record

GPU = Gpu("sm87", "Orin", "CUDA 12.6")
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx"
)

INTERRUPTED_BUILD = """
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

from cmt.targets.tensorrt.build import build_engine

phases = []


@contextmanager
def task(phase, steps):  # called by the builder
    phases.append(phase)
    if len(phases) == 1:
        os.kill(os.getpid(), signal.SIGINT)
    yield lambda advance: None


signal.signal(signal.SIGINT, getattr(signal, sys.argv[3]))
try:
    build_engine(Path(sys.argv[1]), Path(sys.argv[2]), ("sm86",), task=task)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.fixture
def onnx_file(tmp_path: Path) -> Callable[[str], Path]:
    """`onnx_file(operator)`: a graph of one convolution and the operator, of 3 x 8 x 8 pixels."""

    def make(operator: str = "Relu") -> Path:
        weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "stem.0.conv.weight")
        domain = "" if operator == "Relu" else "nowhere"
        nodes = [
            helper.make_node("Conv", ["input", weight.name], ["c"]),
            helper.make_node(operator, ["c"], ["logits"], domain=domain),
        ]
        infos = [
            helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 8, 8]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4, 6, 6]),
        ]
        graph = helper.make_graph(nodes, "graph", infos[:1], infos[1:], [weight])
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nowhere", 1)]
        path = tmp_path / "graph.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
        return path

    return make


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`without("tensorrt")`: the package looks as if it were not installed."""

    def hide(*names: str) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name in names else find(name)
        )

    return hide


@needs_rtx
def test_architectures_are_normalised_and_kept_in_order() -> None:
    assert parse_archs("sm89, SM86,sm89") == ("sm89", "sm86")
    assert parse_archs(",".join(DEFAULT_ARCHS)) == DEFAULT_ARCHS


@needs_rtx
@pytest.mark.parametrize("text", ["sm99", "sm86,ampere", "", ",", "86", "current", "none"])
def test_unknown_architectures_are_refused_with_the_valid_ones(text: str) -> None:
    with pytest.raises(InputError, match=r"sm75,sm80,sm86,sm89,sm120") as caught:
        parse_archs(text)
    assert "\n" not in str(caught.value)


def test_absence_says_what_to_install(
    without: Callable[..., None], onnx_file: Callable[..., Path], tmp_path: Path
) -> None:
    without("tensorrt", "tensorrt_rtx")
    found = availability()
    assert found.library is None
    assert found.version is None
    assert "pip install tensorrt-rtx" in str(found.reason)
    for call in (
        lambda: build_engine(onnx_file(), tmp_path / "engine", DEFAULT_ARCHS),
        lambda: parse_archs("sm86"),
    ):
        with pytest.raises(InputError, match="pip install tensorrt-rtx"):
            call()


@needs_rtx
def test_tensorrt_rtx_is_found_with_its_version() -> None:
    found = availability()
    assert found.version
    assert found.reason is None
    assert found.library == "tensorrt_rtx" or found.gpu


@pytest.mark.parametrize(
    ("version", "gpu", "reason"),
    [("tensorrt 11.4.0.106", None, "GPU"), ("tensorrt 8.6.1", GPU, "no strong typing")],
)
def test_tensorrt_that_cannot_build_here_says_why(
    without: Callable[..., None],
    install: Callable[..., Machine],
    version: str,
    gpu: Gpu | None,
    reason: str,
) -> None:
    install(version, gpu=gpu)
    without("tensorrt_rtx")
    found = availability()
    assert found.library is None
    assert reason in str(found.reason)


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_engine_is_built_ahead_of_time(
    float_graph: Callable[[str], Path], precision: str, tmp_path: Path
) -> None:
    model = onnx.load(float_graph("official"))
    if precision == "int8":
        model = quantize_onnx(model, [np.ones((2, 3, 64, 64), np.float32)], RECIPES[EXPLICIT])
    if precision != "fp32":
        model = to_fp16(model)
    onnx.save(model, tmp_path / "graph.onnx")
    info = build_engine(tmp_path / "graph.onnx", tmp_path / "cmt.engine", ("sm86", "sm120"))
    if availability().library == "tensorrt_rtx":
        assert info["built_for"] == ["sm86", "sm120"]
    assert info["built_with"] == {availability().library: availability().version}
    assert info["seconds"] > 0
    assert not [message for message in info["messages"] if message.startswith("error")]
    assert (tmp_path / "cmt.engine").stat().st_size > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cmt.engine", "graph.onnx"]


@needs_rtx
def test_an_operator_that_tensorrt_lacks_is_named_in_one_line(
    onnx_file: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "cmt.engine"
    out.write_bytes(b"earlier")
    with pytest.raises(InputError, match="Wobble") as caught:
        build_engine(onnx_file("Wobble"), out, ("sm86",))
    assert "\n" not in str(caught.value)
    assert out.read_bytes() == b"earlier"


@needs_rtx
def test_a_gpu_that_tensorrt_rtx_does_not_build_for_is_refused(
    onnx_file: Callable[..., Path], tmp_path: Path
) -> None:
    if availability().library != "tensorrt_rtx":
        pytest.skip("TensorRT proper builds for the GPU that is here")
    with pytest.raises(InputError, match=r"tensorrt_rtx .* does not build for sm90"):
        build_engine(onnx_file(), tmp_path / "engine", ("sm90",))


@needs_rtx
def test_a_file_that_is_missing_or_no_onnx_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        build_engine(tmp_path / "absent.onnx", tmp_path / "engine", ("sm86",))
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(InputError, match=r"text\.onnx"):
        build_engine(tmp_path / "text.onnx", tmp_path / "engine", ("sm86",))


@pytest.mark.parametrize("version", VERSIONS)
def test_tensorrt_proper_builds_for_the_gpu_of_the_machine(
    install: Callable[..., Machine],
    onnx_file: Callable[..., Path],
    tmp_path: Path,
    version: str,
) -> None:
    machine = install(version)
    bars: list[tuple[str, int]] = []

    @contextmanager
    def task(title: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda steps: bars.append((title, total))

    settings = BuildSettings(workspace_mb=64, level=2, cache=tmp_path / "cache")
    path = onnx_file()
    info = build_engine(path, tmp_path / "engine", DEFAULT_ARCHS, settings, task)
    assert machine.flags == (0 if version.startswith("tensorrt 11") else 1 << 1)
    assert machine.config.builder_optimization_level == 2
    assert "IBuilderConfig.set_memory_pool_limit" in machine.asked
    assert bars == [("building", 2)]
    assert info["built_for"] == ["sm87"]
    assert info["built_with"] == {"tensorrt": version.split()[1]}
    assert (info["gpu"], info["driver"]) == (GPU.name, GPU.driver)
    assert info["onnx_sha256"] == sha256_file(path)
    assert (tmp_path / "engine").read_bytes() == b"plan"

    # What was timed is kept for the next build on this GPU with this version.
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.name == f"tensorrt-{version.split()[1]}-Orin.timings"
    build_engine(path, tmp_path / "engine", (), settings)
    assert [call for call in machine.asked if call.startswith("timings")] == [
        "timings ",
        "timings of kernels",
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_engines_are_built_for_newer_versions_other_gpus_and_a_dla_core(
    install: Callable[..., Machine],
    onnx_file: Callable[..., Path],
    tmp_path: Path,
    version: str,
) -> None:
    machine = install(version, dla_cores=2)
    settings = BuildSettings(compatible=("version", "hardware"), dla=1)
    info = build_engine(onnx_file(), tmp_path / "engine", (), settings)
    assert machine.config_flags == ["BuilderFlag.VERSION_COMPATIBLE", "BuilderFlag.GPU_FALLBACK"]
    level = "HardwareCompatibilityLevel.AMPERE_PLUS"
    assert machine.config.hardware_compatibility_level == level
    assert machine.config.default_device_type == "DeviceType.DLA"
    assert machine.config.DLA_core == 1
    assert info["compatible"] == ["version", "hardware"]
    assert info["dla"] == {"core": 1, "layers": 2, "on_gpu": ["softmax"]}


@pytest.mark.parametrize("version", VERSIONS)
def test_engines_are_built_for_a_range_of_batches(
    install: Callable[..., Machine],
    onnx_file: Callable[..., Path],
    tmp_path: Path,
    version: str,
) -> None:
    machine = install(version, dla_cores=1)
    info = build_engine(onnx_file(), tmp_path / "engine", (), batches=(1, 8, 32))
    assert machine.profile == [(batch, 3, 32, 32) for batch in (1, 8, 32)]
    assert info["batches"] == [1, 8, 32]
    with pytest.raises(InputError, match="a DLA core takes no range of batches"):
        build_engine(onnx_file(), tmp_path / "b", (), BuildSettings(dla=0), batches=(1, 8, 32))


def test_no_hardware_compatible_engine_is_built_on_a_jetson(
    install: Callable[..., Machine], onnx_file: Callable[..., Path], tmp_path: Path
) -> None:
    install(VERSIONS[0], gpu=replace(GPU, integrated=True))
    with pytest.raises(InputError, match="no hardware-compatible engines for Orin"):
        build_engine(onnx_file(), tmp_path / "a", (), BuildSettings(compatible=("hardware",)))


def test_a_dla_core_that_is_not_there_is_refused(
    install: Callable[..., Machine], onnx_file: Callable[..., Path], tmp_path: Path
) -> None:
    install(VERSIONS[0], dla_cores=1)
    with pytest.raises(InputError, match=r"no DLA core 1: tensorrt 10\.3\.0 finds 1 here"):
        build_engine(onnx_file(), tmp_path / "engine", (), BuildSettings(dla=1))
    assert not (tmp_path / "engine").exists()


@needs_rtx
@pytest.mark.parametrize("settings", [BuildSettings(compatible=("version",)), BuildSettings(dla=0)])
def test_tensorrt_rtx_refuses_what_it_does_not_have(
    onnx_file: Callable[..., Path], tmp_path: Path, settings: BuildSettings
) -> None:
    with pytest.raises(InputError, match="TensorRT-RTX has no DLA and no engines for other"):
        build_engine(onnx_file(), tmp_path / "engine", ("sm86",), settings)


@pytest.mark.parametrize(
    ("words", "kind", "reason"),
    [
        (
            "Could not find any implementation for node X",
            GateError,
            "any implementation for node X",
        ),
        ("Requested size was 12 bytes. out of memory", InputError, "short of GPU memory"),
    ],
)
def test_a_failed_build_keeps_the_earlier_engine(
    install: Callable[..., Machine],
    onnx_file: Callable[..., Path],
    tmp_path: Path,
    words: str,
    kind: type[Exception],
    reason: str,
) -> None:
    install(VERSIONS[-1], fails={"Builder.build_serialized_network": words})
    out = tmp_path / "cmt.engine"
    out.write_bytes(b"earlier")
    with pytest.raises(kind, match=reason) as caught:
        build_engine(onnx_file(), out, ())
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir() if "engine" in path.name] == ["cmt.engine"]
    assert out.read_bytes() == b"earlier"


ENGINE = {"built_with": {"tensorrt": "10.3.0"}, "built_for": ["sm87"], "gpu": "Orin"}
OUTLIVING = {**ENGINE, "built_with": {"tensorrt": "10.1.0"}}


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (ENGINE, None),
        ({**ENGINE, "onnx_sha256": "a"}, None),
        ({**ENGINE, "onnx_sha256": "b"}, "another ONNX file"),
        ({**ENGINE, "gpu": "Orin Nano"}, r"\(Orin Nano\); this GPU is Orin"),
        ({**ENGINE, "built_for": ["sm86"]}, "for sm86; here are tensorrt 10.3.0 and sm87"),
        ({**ENGINE, "built_with": {"tensorrt": "10.7.0"}}, "10.7.0 for sm87; here are .* 10.3.0"),
        ({**ENGINE, "built_with": {"tensorrt_rtx": "1.7"}}, "tensorrt_rtx is not installed here"),
        ({**OUTLIVING, "compatible": ["version"]}, None),
        ({**OUTLIVING, "compatible": ["hardware"]}, "10.1.0 for sm87; here are .* 10.3.0"),
        ({**OUTLIVING, "built_for": ["sm86"], "compatible": ["version"]}, "here are .* sm87"),
        (
            {**ENGINE, "built_with": {"tensorrt": "10.10.0"}, "compatible": ["version"]},
            "here are .* 10.3.0",
        ),
    ],
)
def test_an_engine_for_another_gpu_version_or_graph_is_told_apart(
    install: Callable[..., Machine],
    without: Callable[..., None],
    entry: dict[str, Any],
    reason: str | None,
) -> None:
    install("tensorrt 10.3.0")
    without("tensorrt_rtx")
    found = not_for_here(entry, "a")
    if reason is None:
        assert found is None
    else:
        assert re.search(reason, str(found))


@pytest.mark.parametrize(
    ("built", "running", "works"),
    [
        ("10.3.0", "11.4.0.106", True),
        ("8.6.1", "11.4.0.106", False),
        ("11.4.0.106", "10.13.3.9", False),
        ("10.3.0", "10.13.3.9", True),
    ],
)
def test_version_compatible_engines_outlive_their_version(
    install: Callable[..., Machine], built: str, running: str, works: bool
) -> None:
    install(f"tensorrt {running}")
    entry = {**ENGINE, "built_with": {"tensorrt": built}, "compatible": ["version"]}
    assert (not_for_here(entry) is None) == works


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [
        (Gpu("sm89", "RTX 4090", "CUDA 12.6"), None),
        (Gpu("sm75", "T4", "CUDA 12.6"), "for sm86 and later; this GPU is sm75"),
        (replace(GPU, integrated=True), "for sm86; here are tensorrt 10.3.0 and sm87"),
    ],
)
def test_a_hardware_compatible_engine_is_for_all_gpus_from_ampere_on_but_jetsons(
    install: Callable[..., Machine], gpu: Gpu, reason: str | None
) -> None:
    install("tensorrt 10.3.0", gpu=gpu)
    found = not_for_here({**ENGINE, "built_for": ["sm86"], "compatible": ["hardware"]})
    assert found == (reason and f"built with tensorrt 10.3.0 {reason}")


def test_no_engine_is_for_a_machine_without_a_gpu(install: Callable[..., Machine]) -> None:
    install("tensorrt 10.3.0", gpu=None)
    assert not_for_here(ENGINE) == "no NVIDIA GPU on this machine"


@needs_rtx
def test_a_truncated_engine_is_refused_by_the_true_library_in_one_line(
    onnx_file: Callable[..., Path], tmp_path: Path
) -> None:
    build_engine(onnx_file(), tmp_path / "engine", ("sm86",))
    plan = (tmp_path / "engine").read_bytes()
    for part in (plan[: len(plan) // 2], plan[:100], b""):
        with pytest.raises(InputError, match=r"cannot load the engine \(error: ") as e:
            read_engine(str(availability().library), part, [])
        assert "\n" not in str(e.value)


@needs_rtx
@pytest.mark.parametrize(
    ("handler", "said"), [("default_int_handler", "interrupted\n"), ("SIG_IGN", "")]
)
def test_an_interrupt_during_a_build_is_not_lost_in_it_and_an_ignored_one_is(
    float_graph: Callable[[str], Path], tmp_path: Path, handler: str, said: str
) -> None:
    graph, engine = tmp_path / "fp16.onnx", tmp_path / "file.engine"
    onnx.save(to_fp16(onnx.load(float_graph("official"))), graph)
    # On its own, because a signal in the wrong place would end the tests.
    command = [sys.executable, "-c", INTERRUPTED_BUILD, graph, engine, handler]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.stdout, result.returncode) == (said, 0), result.stderr
    assert engine.exists() == (not said)


@needs_rtx
def test_the_builders_log_proves_that_int8_is_int8_and_fp16_fp16(
    float_graph: Callable[[str], Path], tmp_path: Path
) -> None:
    model = onnx.load(float_graph("official"))
    int8 = quantize_onnx(model, [np.ones((2, 3, 64, 64), np.float32)], RECIPES[EXPLICIT])
    onnx.save(to_fp16(int8), tmp_path / "int8.onnx")
    onnx.save(to_fp16(model), tmp_path / "fp16.onnx")
    built = {name: read_record(tmp_path / f"{name}.onnx", "sm89") for name in ("int8", "fp16")}

    def reading(name: str) -> dict[str, int]:
        counts: dict[str, int] = {}
        for (_, reads, _), count in built[name].products.items():
            counts[reads] = counts.get(reads, 0) + count
        return counts

    assert set(reading("fp16")) == {"Half"}
    weights = {n.output[0] for n in int8.graph.node if n.op_type == "DequantizeLinear"}
    products = [n for n in int8.graph.node if len(n.input) > 1 and n.input[1] in weights]
    # Those that read one tensor, keys and values, become one.
    assert reading("int8")["Int8"] == len({(n.op_type, n.input[0]) for n in products})
    assert len(products) > 30
    assert reading("int8").keys() == {"Int8", "Half"}
