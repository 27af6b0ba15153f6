"""Repositories for model servers, made of a bundle; no server is here to run them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmt.bundle.reader import open_bundle
from cmt.bundle.running import run_full
from cmt.bundle.serving import SERVERS, write_repository
from cmt.errors import InputError
from cmt.targets.openvino import load_openvino
from cmt.targets.registry import TARGETS

Rewrite = Callable[..., None]


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


@pytest.mark.parametrize("server", SERVERS)
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
    assert set(row.served) == {"triton"}
