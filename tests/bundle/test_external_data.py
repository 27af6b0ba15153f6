"""An ONNX file of a bundle makes no runtime read a file from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from cmt.targets.onnxruntime import load_onnxruntime
from cmt.targets.openvino import load_openvino

LOADERS = [load_onnxruntime, load_openvino]


def adding(location: Path | str, path: Path) -> Path:
    """An ONNX file that adds four numbers, kept at `location`, to its input."""
    numbers = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    numbers.data_location = TensorProto.EXTERNAL
    for key, value in {"location": str(location), "offset": "0", "length": "16"}.items():
        numbers.external_data.add(key=key, value=value)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", values[:1], values[1:], [numbers])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("way", ["up", "absolute", "link"])
def test_data_outside_the_folder_is_not_read(
    load: Callable[..., object], way: str, tmp_path: Path
) -> None:
    folder, secret = tmp_path / "model", tmp_path / "secret.bin"
    folder.mkdir()
    secret.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (folder / "link.bin").symlink_to(secret)
    location = {"up": "../secret.bin", "absolute": secret, "link": "link.bin"}[way]
    with pytest.raises(Exception, match=r"[Pp]ath|w"):
        load(adding(location, folder / "a.onnx"), 1)


@pytest.mark.parametrize("load", LOADERS)
def test_the_trap_works_where_the_data_is_within(
    load: Callable[..., object], tmp_path: Path
) -> None:
    (tmp_path / "data.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    runner = load(adding("data.bin", tmp_path / "a.onnx"), 1)
    assert runner(np.zeros(4, np.float32))[0].tolist() == [0, 1, 2, 3]  # type: ignore[operator]
