"""Repositories for model servers, made of a bundle; no server is here to run them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmt.bundle.reader import open_bundle
from cmt.bundle.running import run_full
from cmt.bundle.serving import write_repository
from cmt.errors import InputError
from cmt.targets.openvino import load_openvino
from cmt.targets.registry import TARGETS

Rewrite = Callable[..., None]
DEEPSTREAM_KEYS = {
    *("model-engine-file", "labelfile-path", "batch-size", "infer-dims", "network-input-order"),
    *("network-mode", "network-type", "process-mode", "gie-unique-id", "model-color-format"),
    *("net-scale-factor", "offsets", "maintain-aspect-ratio", "output-blob-names"),
    *("classifier-threshold", "output-tensor-meta"),
}
"""As NVIDIA's gstnvinfer_property_parser.h spells those that are used; what it has not, is lost."""


@pytest.fixture
def normalising(stored: Path, rewrite: Rewrite) -> Path:
    """`stored`, as if its files normalised inside; its OpenVINO file does so in truth."""
    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    def claim(manifest: dict[str, Any]) -> None:
        batch, _, *size = manifest["input"]["shape"]
        manifest["input"] |= {"dtype": "uint8", "layout": "NHWC", "shape": [batch, *size, 3]}
        entry = next(a for a in manifest["artefacts"] if a["path"].endswith("int8.xml"))
        path = stored / entry["path"]
        model = ov.Core().read_model(path)
        inside, given = PrePostProcessor(model), manifest["input"]
        inside.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
        inside.input().model().set_layout(ov.Layout("NCHW"))
        steps = inside.input().preprocess().convert_element_type(ov.Type.f32)
        steps.mean([255 * one for one in given["mean"]]).scale([255 * one for one in given["std"]])
        ov.save_model(inside.build(), path.with_name("new.xml"), compress_to_fp16=False)
        del model
        for suffix in (".xml", ".bin"):
            path.with_name(f"new{suffix}").replace(path.with_suffix(suffix))
        # Its answers were in BF16.
        images = np.load(stored / manifest["golden"]["images"]["path"])
        runner = load_openvino(path, 1, batch=batch)
        answers = run_full_batches(runner, images, batch)
        np.save(stored / entry["golden"]["outputs"][0]["path"], answers)

    rewrite(stored, claim)
    return stored


def run_full_batches(runner: Any, images: np.ndarray, batch: int) -> np.ndarray:
    begins = range(0, len(images), batch)
    return np.concatenate([run_full(runner, images[i : i + batch], batch)[0] for i in begins])


def test_triton_has_a_configuration_that_its_own_schema_reads(
    normalising: Path, tmp_path: Path
) -> None:
    bundle = open_bundle(normalising)
    assert write_repository(bundle, "triton", tmp_path / "triton") == []
    schema = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc], of the dev extra"
    )
    from google.protobuf import text_format

    backends = {}
    for path in sorted((tmp_path / "triton").glob("*/config.pbtxt")):
        config = text_format.Parse(path.read_text(), schema.ModelConfig())
        assert config.name == path.parent.name
        backends[config.backend] = sorted(p.name for p in (path.parent / "1").iterdir())
        (given,), (answer,) = config.input, config.output
        assert (given.name, list(given.dims)) == ("input", bundle.manifest["input"]["shape"])
        assert given.data_type == schema.TYPE_UINT8
        assert (answer.name, list(answer.dims)) == ("logits", [given.dims[0], 2])
        labels = (path.parent / answer.label_filename).read_text().splitlines()
        assert labels == bundle.manifest["labels"]
    assert backends == {
        "openvino": ["model.bin", "model.xml"],
        "onnxruntime": ["model.onnx"],
    }


def test_ovms_has_versioned_folders_and_a_list_of_them(normalising: Path, tmp_path: Path) -> None:
    out = tmp_path / "ovms"
    write_repository(open_bundle(normalising), "ovms", out)
    listed = json.loads((out / "config.json").read_text())["model_config_list"]
    for entry in (one["config"] for one in listed):
        assert entry["base_path"] == f"/models/{entry['name']}"
        assert list((out / entry["name"] / "1").glob("model.*"))
    assert len(listed) == 2


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Where a stand-in finds its repository, and where it listens: it speaks the servers' protocol
    and runs OpenVINO's files."""
    repository = tmp_path / "repository"

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            (given,) = body["inputs"]
            assert given["datatype"] == "UINT8"
            name = self.path.split("/")[3]
            images = np.array(given["data"], np.uint8).reshape(given["shape"])
            (logits,) = load_openvino(repository / name / "1" / "model.xml", 1)(images)
            shown = {"name": "logits", "shape": logits.shape, "data": logits.ravel().tolist()}
            answer = json.dumps({"outputs": [shown]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield repository, f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def test_the_client_gets_the_golden_answers_over_the_wire(
    normalising: Path, server: tuple[Path, str], rewrite: Rewrite
) -> None:
    def openvino_alone(manifest: dict[str, Any]) -> None:
        kept = [a for a in manifest["artefacts"] if a["target"] != "onnxruntime"]
        manifest["artefacts"] = kept

    rewrite(normalising, openvino_alone)
    repository, url = server
    write_repository(open_bundle(normalising), "triton", repository)

    def ask() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, repository / "client.py", url]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    asked = ask()
    assert (asked.returncode, asked.stderr) == (0, ""), asked.stdout
    assert "_int8: differs by" in asked.stdout
    (golden,) = repository.glob("*-logits.npy")
    np.save(golden, -np.load(golden))
    assert ask().returncode == 1


@pytest.mark.parametrize("server", ["triton", "ovms"])
def test_files_that_normalise_outside_are_refused(
    server: str, stored: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="export with --embed-preprocess"):
        write_repository(open_bundle(stored), server, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_folder_but_an_earlier_repository_is_replaced(normalising: Path, tmp_path: Path) -> None:
    bundle, out = open_bundle(normalising), tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match="there already"):
        write_repository(bundle, "ovms", out, force=True)
    out.rmdir()
    write_repository(bundle, "ovms", out)
    with pytest.raises(InputError, match="there already"):
        write_repository(bundle, "triton", out)
    write_repository(bundle, "triton", out, force=True)
    assert not (out / "config.json").exists()
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]


def test_engines_of_tensorrt_rtx_are_left_out_with_the_reason() -> None:
    row = TARGETS["tensorrt"]
    assert "TensorRT-RTX" in str(row.not_served({"built_with": {"tensorrt_rtx": "1.7"}}))  # type: ignore[typeddict-item]
    assert row.not_served({"built_with": {"tensorrt": "10.9"}}) is None  # type: ignore[typeddict-item]
    assert set(row.served) == {"triton", "deepstream"}


@pytest.fixture
def with_engine(stored: Path, rewrite: Rewrite) -> Callable[..., Path]:
    """`with_engine(**input)`: `stored` with an engine of TensorRT, and its `input` changed."""

    def make(**given: Any) -> Path:
        def change(manifest: dict[str, Any]) -> None:
            entry = next(a for a in manifest["artefacts"] if a["path"].endswith("int8.xml"))
            engine = {**entry, "target": "tensorrt", "path": "tensorrt/cmt_tiny.int8.engine"}
            manifest["artefacts"] = [{**engine, "built_with": {"tensorrt": "10.3.0"}}]
            manifest["input"] |= given

        (stored / "tensorrt").mkdir()
        (stored / "tensorrt" / "cmt_tiny.int8.engine").write_bytes(b"an engine")
        rewrite(stored, change)
        return stored

    return make


def test_deepstream_normalises_as_the_bundle_does(
    with_engine: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = open_bundle(with_engine(mean=[0.1, 0.5, 0.9], std=[0.25, 0.25, 0.25]))
    notes = write_repository(bundle, "deepstream", tmp_path / "out")
    assert any("answers differ" in note for note in notes)
    (folder,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    parser = ConfigParser()
    parser.read(folder / "config_infer_primary.txt")
    keys = dict(parser["property"])
    assert set(keys) <= DEEPSTREAM_KEYS
    assert (folder / keys["model-engine-file"]).read_bytes() == b"an engine"
    assert (folder / keys["labelfile-path"]).read_text() == "blue;red\n"
    batch, _, *size = bundle.manifest["input"]["shape"]
    assert keys["infer-dims"] == ";".join(map(str, (3, *size)))
    assert (keys["batch-size"], keys["network-mode"]) == (str(batch), "1")
    pixels = np.load(bundle.file(bundle.manifest["golden"]["images"])).astype(np.float64)
    offsets = [float(one) for one in keys["offsets"].split(";")]
    made = float(keys["net-scale-factor"]) * (pixels - offsets)
    expected = (pixels / 255 - bundle.manifest["input"]["mean"]) / 0.25
    assert np.abs(made - expected).max() < 1e-12


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"std": [0.2, 0.2, 0.3]}, "divides by 0.2, 0.2, 0.3.*Gst-nvinferserver"),
        ({"dtype": "uint8", "layout": "NHWC", "shape": [1, 64, 64, 3]}, "hands over floats"),
    ],
)
def test_what_deepstream_cannot_prepare_is_refused(
    with_engine: Callable[..., Path], tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    bundle = open_bundle(with_engine(**given))
    with pytest.raises(InputError, match=said):
        write_repository(bundle, "deepstream", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_label_that_deepstream_would_split_is_refused(
    with_engine: Callable[..., Path], rewrite: Rewrite, tmp_path: Path
) -> None:
    folder = with_engine(std=[0.25, 0.25, 0.25])
    rewrite(folder, lambda manifest: manifest.update(labels=["a;b", "c"]))
    with pytest.raises(InputError, match="needs labels, without"):
        write_repository(open_bundle(folder), "deepstream", tmp_path / "out")


def test_files_for_cpus_are_nothing_for_deepstream(
    stored: Path, rewrite: Rewrite, tmp_path: Path
) -> None:
    rewrite(stored, lambda manifest: manifest["input"].update(std=[0.25, 0.25, 0.25]))
    with pytest.raises(InputError, match="deepstream runs none of the bundle's files"):
        write_repository(open_bundle(stored), "deepstream", tmp_path / "out")
