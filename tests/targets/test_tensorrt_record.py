"""The builder's record of layers: read from a log, added up, and held against the network."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from whole_recipe import quantize_onnx

from benchmarks.engine_record import main
from cmt.errors import InputError
from cmt.quantize.half import to_fp16
from cmt.quantize.recipe import RECIPES, TENSOR_CORES
from cmt.targets.tensorrt.record import GPUS, Rates, parse_record, predict, read_record

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx"
)


def tensor(name: str, shape: str, kind: str = "Half") -> str:
    return (
        f"{{ Name: {name}, Dimensions: [{shape}], Strides: [1], StrideOrder: [0], "
        f"Datatype: {kind}, Format: (Linear) Row major linear format }}"
    )


def layer(name: str, kind: str, reads: str, constants: str, writes: str, nodes: str = "") -> str:
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {reads}], Constants: [ {constants}], "
        f"Outputs: [ {writes}], TacticName: x, StreamId: 0, Metadata: {nodes}"
    )


LOG = [
    "Layers:",
    layer(
        "__myl_CorrAdd_myl0_0",
        "runtime_fusion",
        tensor("x", "1,16,8,8"),
        tensor("w", "32,16,3,3"),
        tensor("y", "1,32,8,8"),
        "[ONNX Layer: node_conv][ONNX Layer: node_add]",
    ),
    layer(
        "__myl_GeluRoun_myl0_1",
        "kgen",
        f"{tensor('y', '1,32,8,8')}, {tensor('y', '1,32,8,8')}",
        "",
        tensor("q", "64,32", "Int8"),
    ),
    "Name: __mye1_myl0_2, LayerType: signal, Inputs: [], Constants: [], Outputs: [], "
    "TacticName: , StreamId: 0, EventId: 1, Metadata: ",
    layer(
        "Gemm_1", "gemm", tensor("q", "64,32", "Int8"), tensor("v", "32,10"), tensor("z", "64,10")
    ),
    layer("__myl_TranReshMove_myl0_4", "kgen", tensor("z", "64,10"), "", tensor("o", "10,64")),
    layer(
        "_gemm_mha_v2_myl0_5",
        "kgen",
        ", ".join(
            [tensor("a", "2,100,16"), tensor("b", "2,16,25"), tensor("c", "2,25,16")],
        ),
        tensor("bias", "1,2,100,25"),
        tensor("m", "2,100,16"),
    ),
]


def test_a_log_is_added_up() -> None:
    record = parse_record(LOG)
    assert (len(record.launches), record.syncs, record.copies) == (5, 1, 1)
    conv, gelu, gemm, _, mha = record.launches
    assert conv.nodes == ("node_conv", "node_add")
    assert conv.moved == 2 * (16 * 64 + 32 * 64)
    assert gelu.moved == 2 * 32 * 64 + 64 * 32  # what it reads twice is read once
    assert conv.macs == 32 * 64 * 16 * 9
    assert gemm.macs == 64 * 10 * 32
    assert mha.macs == 2 * (2 * 100 * 16 * 25)
    assert record.macs == {"Half": conv.macs + mha.macs, "Int8": gemm.macs}
    assert record.products["gemm", "Int8", "Half"] == 1
    assert record.constants == 2 * (32 * 16 * 9 + 320 + 2 * 100 * 25)


def test_the_predicted_time_is_of_launches_and_of_memory_or_products() -> None:
    record = parse_record(LOG)
    slow = {"Half": 1e3, "Int8": 2e3}
    products = sum(macs / slow[kind] for kind, macs in record.macs.items())
    assert predict(record, Rates("", "", 1e30, slow, 0.0)) == pytest.approx(products)
    fast = dict.fromkeys(slow, 1e30)
    bytes_ = record.moved + record.constants
    assert predict(record, Rates("", "", 1e6, fast, 0.0)) == pytest.approx(bytes_ / 1e6)
    assert predict(record, Rates("", "", 1e30, fast, 3.0)) == pytest.approx(5 * 3.0)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "has no layers"),
        ([LOG[1].replace("Half", "Int3")], "tensors of Int3"),
    ],
)
def test_a_log_of_another_kind_is_refused(lines: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_record(lines)


@needs_rtx
def test_the_form_for_tensor_cores_has_no_copy_that_pads_and_int8_that_writes_no_float(
    tiles_graph: Callable[[str], Path], tmp_path: Path
) -> None:
    model = onnx.load(tiles_graph("official"))
    int8 = quantize_onnx(model, [np.ones((2, 3, 64, 64), np.float32)], RECIPES[TENSOR_CORES])
    onnx.save(to_fp16(int8), tmp_path / "int8.onnx")
    onnx.save(to_fp16(model), tmp_path / "fp16.onnx")
    records = {name: read_record(tmp_path / f"{name}.onnx", "sm89") for name in ("int8", "fp16")}
    for record in records.values():
        copies = [launch.name for launch in record.launches if launch.is_copy]
        assert not [name for name in copies if "Conc" in name and "Repl" not in name]
        assert set(record.macs) <= {"Half", "Int8"}
        assert ("Int8", "Float") not in {(reads, writes) for _, reads, writes in record.products}
    assert set(records["fp16"].macs) == {"Half"}
    assert records["int8"].macs["Int8"] > 0
    assert predict(records["fp16"], GPUS["sm89"]) > 0

    result = CliRunner().invoke(
        main, [str(tmp_path / "fp16.onnx"), "--compare", str(tmp_path / "int8.onnx"), "--json"]
    )
    rows = json.loads(result.output)
    assert rows[str(tmp_path / "fp16.onnx")]["moved"] == records["fp16"].moved
    assert len(rows) == 2
