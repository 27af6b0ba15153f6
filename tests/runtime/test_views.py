"""Pixels of any layout are to C++ what they are to Python and OpenCV; feature maps are Python's."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper

import cmt
from cmt.bundle.manifest import file_entries
from cmt.bundle.writer import describe_file, write_manifest

SIZE = 64
REFERENCE = Path(__file__).parents[1] / "reference" / "nv12.npz"


@pytest.fixture
def features(stored: Path) -> Path:
    """A bundle of four maps, of which the first is the prepared image itself."""
    graph = stored / "onnxruntime" / "cmt_tiny.int8.onnx"
    onnx.save(four_maps(), graph)
    openvino.save_model(
        openvino.convert_model(graph),
        stored / "openvino" / "cmt_tiny.int8.xml",
        compress_to_fp16=False,
    )
    manifest = json.loads((stored / "manifest.json").read_text())
    manifest |= {"outputs": ["s4", "s8", "s16", "s32"], "labels": []}
    for entry in manifest["artefacts"]:
        if "golden" in entry:
            entry["golden"]["outputs"] *= 4
            entry["settings"] = {}
    for entry in file_entries(manifest):
        entry |= describe_file(stored, stored / entry["path"])
    write_manifest(stored, manifest)
    return stored


def four_maps() -> Any:
    def shape(side: int) -> list[int]:
        return [1, 3, side, side]

    nodes, outputs = [helper.make_node("Identity", ["input"], ["map1"])], []
    for scale in (1, 2, 4, 8):
        name = f"map{scale}"
        of = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape(SIZE // scale))
        outputs.append(of)
        if scale > 1:
            sides = {"kernel_shape": [scale] * 2, "strides": [scale] * 2}
            nodes.append(helper.make_node("AveragePool", ["input"], [name], **sides))
    taken = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape(SIZE))
    graph = helper.make_graph(nodes, "maps", [taken], outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@dataclass
class View:
    """Raw bytes with the words that say what they are, and the RGB that they stand for."""

    format: str
    rows: np.ndarray
    rgb: np.ndarray

    def line(self, path: Path, gap: int) -> str:
        """Written with so many bytes between rows, none after the last."""
        height, width = self.rgb.shape[:2]
        wide = np.full((len(self.rows), self.rows[0].size + gap), 7, np.uint8)
        wide[:, : self.rows[0].size] = self.rows.reshape(len(self.rows), -1)
        content = wide.tobytes()
        path.write_bytes(content[: len(content) - gap])
        return f"{self.format} {width} {height} {wide.shape[1]} {path}\n"


def views() -> list[View]:
    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (40, 70, 3), np.uint8)
    grey = rng.integers(0, 256, (50, 30), np.uint8)
    long = rng.integers(0, 256, (3, 65 * 4), np.uint8)  # its ends are cut off
    as_rgb = {one.shape: np.stack([one] * 3, axis=-1) for one in (grey, long)}
    nv12 = np.load(REFERENCE)
    return [
        View("rgb", rgb, rgb),
        View("bgr", rgb[..., ::-1], rgb),
        View("mat", rgb[..., ::-1], rgb),
        View("mat-rgb", rgb, rgb),
        *(View("grey", one, as_rgb[one.shape]) for one in (grey, long)),
        View("mat", grey, as_rgb[grey.shape]),
        *(View(name, nv12["nv12"], nv12["rgb"]) for name in ("nv12", "nv12-apart")),
        strip(nv12["nv12"], nv12["rgb"]),
    ]


def strip(nv12: np.ndarray, rgb: np.ndarray) -> View:
    """The first two rows, repeated until the ends are cut off at an odd pixel: three of 134."""
    rows = nv12[[0, 1, len(rgb)]]
    return View("nv12", np.tile(rows, (1, 3))[:, :134], np.tile(rgb[:2], (1, 3, 1))[:, :134])


def in_cpp(
    runtime: Path, bundle: Path, artefact: str, lines: list[str], out: Path
) -> tuple[list[np.ndarray], str]:
    """The outputs for these views, or what is said against them."""
    command = [runtime / "tests" / "use_views", bundle, artefact, out]
    result = subprocess.run(
        command, input="".join(lines), capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stderr
    if result.stdout.startswith("refused: "):
        return [], result.stdout
    shapes = [[int(side) for side in line.split()] for line in result.stdout.splitlines()]
    sizes = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
    parts = np.split(np.fromfile(out, np.float32), sizes)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)], ""


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("gap", [0, 5])
def test_every_layout_is_prepared_as_python_prepares_the_picture(
    runtime: Path,
    has_onnxruntime: bool,
    features: Path,
    tmp_path: Path,
    target: str,
    gap: int,
) -> None:
    if target == "onnxruntime" and not has_onnxruntime:
        pytest.skip("this build is without ONNX Runtime: its headers are not here")
    pictures = views()
    lines = [one.line(tmp_path / f"{i}.raw", gap) for i, one in enumerate(pictures)]
    ours, said = in_cpp(runtime, features, f"{target}/int8", lines, tmp_path / "out")
    assert said == ""
    with cmt.Classifier(features, f"{target}/int8", threads=1) as classifier:
        theirs = classifier.outputs([one.rgb for one in pictures])
    assert [one.shape for one in ours] == [one.shape for one in theirs]
    np.testing.assert_array_equal(ours[0], theirs[0], "of the prepared images")
    for one, other in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rgb 9 4 26", "a stride of 3 * width"),
        ("grey 9 4 8", "or of the width for one byte a pixel"),
        ("nv12 9 4 9", "NV12 has an even width and height, not 9 x 4"),
        ("nv12 8 5 8", "NV12 has an even width and height, not 8 x 5"),
        ("mat 0 4 0", "a cv::Mat must be CV_8UC3 or CV_8UC1 with pixels in it: convert it"),
    ],
)
def test_pixels_that_cannot_be_what_is_said_are_refused(
    runtime: Path, features: Path, tmp_path: Path, line: str, words: str
) -> None:
    (tmp_path / "raw").write_bytes(bytes(200))
    _, said = in_cpp(
        runtime, features, "openvino/int8", [f"{line} {tmp_path / 'raw'}\n"], tmp_path / "out"
    )
    assert words in said


def test_feature_maps_are_no_classes_in_the_same_words(runtime: Path, features: Path) -> None:
    photo = features / "golden" / "photo.jpg"
    result = subprocess.run(
        [runtime / "cmt_classify", features, photo], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    with cmt.Classifier(features) as classifier, pytest.raises(cmt.InputError) as error:
        classifier.classify(photo)
    assert result.stderr.splitlines()[-1] == f"cmt_classify: {error.value}"
