"""TensorRT: what is found, what is refused, and that engines come out."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cmt.errors import GateError, InputError
from export import tensorrt
from export.half import to_fp16
from export.tensorrt import DEFAULT_ARCHS, availability, build_engine, parse_archs
from quantize.qdq import quantize_onnx
from quantize.recipe import EXPLICIT, SCHEMES

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx"
)


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


class FakeTensorRT(ModuleType):
    """Stands in for TensorRT proper, which needs a GPU; records how it is called."""

    def __init__(self, version: str, engine: bytes | None) -> None:
        super().__init__("tensorrt")
        self.__spec__ = ModuleSpec("tensorrt", None)
        self.__version__ = version
        self.flags: list[int] = []
        severity = SimpleNamespace(WARNING=2)
        self.ILogger = type("ILogger", (), {"Severity": severity})
        self.MemoryPoolType = SimpleNamespace(WORKSPACE=0)
        if version.startswith("10"):
            self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        config = SimpleNamespace(get_memory_pool_limit=lambda pool: 1 << 30)
        self.Builder = lambda logger: SimpleNamespace(
            create_network=self.flags.append,
            create_builder_config=lambda: config,
            build_serialized_network=lambda network, config: engine,
        )
        self.OnnxParser = lambda network, logger: SimpleNamespace(parse=lambda content: True)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeTensorRT]:
    """`install(version, engine, gpu)`: TensorRT proper beside this GPU, or none."""

    def make(
        version: str, engine: bytes | None = b"engine", gpu: str | None = "sm87"
    ) -> FakeTensorRT:
        fake = FakeTensorRT(version, engine)
        monkeypatch.setitem(sys.modules, "tensorrt", fake)
        monkeypatch.setattr(tensorrt, "_gpu_arch", lambda: gpu)
        return fake

    return make


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
    assert found.library == "tensorrt_rtx" or found.has_gpu


@pytest.mark.parametrize(
    ("version", "gpu", "reason"),
    [("11.1.0", None, "GPU"), ("8.6.1", "sm87", "too old")],
)
def test_tensorrt_that_cannot_build_here_says_why(
    without: Callable[..., None],
    install: Callable[..., FakeTensorRT],
    version: str,
    gpu: str | None,
    reason: str,
) -> None:
    without("tensorrt_rtx")
    install(version, gpu=gpu)
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
        model = quantize_onnx(model, [np.ones((2, 3, 64, 64), np.float32)], SCHEMES[EXPLICIT])
    if precision != "fp32":
        model = to_fp16(model)
    onnx.save(model, tmp_path / "graph.onnx")
    stages: list[str] = []
    info = build_engine(
        tmp_path / "graph.onnx", tmp_path / "cmt.engine", ("sm86", "sm120"), stages.append
    )
    if availability().library == "tensorrt_rtx":
        assert info["built_for"] == ["sm86", "sm120"]
    assert info["built_with"] == {availability().library: availability().version}
    assert info["seconds"] > 0
    assert not [message for message in info["messages"] if message.startswith("error")]
    assert len(stages) == 2
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
def test_a_file_that_is_missing_or_no_onnx_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        build_engine(tmp_path / "absent.onnx", tmp_path / "engine", ("sm86",))
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(InputError, match=r"text\.onnx"):
        build_engine(tmp_path / "text.onnx", tmp_path / "engine", ("sm86",))


@pytest.mark.parametrize(("version", "flags"), [("10.13.2", 1 << 1), ("11.1.0", 0)])
def test_tensorrt_proper_builds_for_the_gpu_of_the_machine(
    install: Callable[..., FakeTensorRT],
    onnx_file: Callable[..., Path],
    tmp_path: Path,
    version: str,
    flags: int,
) -> None:
    fake = install(version)
    info: dict[str, Any] = build_engine(onnx_file(), tmp_path / "engine", DEFAULT_ARCHS)
    assert fake.flags == [flags]
    assert info["built_for"] == ["sm87"]
    assert info["built_with"] == {"tensorrt": version}
    assert (tmp_path / "engine").read_bytes() == b"engine"


def test_a_failed_build_keeps_the_earlier_engine(
    install: Callable[..., FakeTensorRT], onnx_file: Callable[..., Path], tmp_path: Path
) -> None:
    install("11.1.0", engine=None)
    out = tmp_path / "cmt.engine"
    out.write_bytes(b"earlier")
    with pytest.raises(GateError, match="built no engine"):
        build_engine(onnx_file(), out, ())
    assert [path.name for path in tmp_path.iterdir() if "engine" in path.name] == ["cmt.engine"]
    assert out.read_bytes() == b"earlier"
