"""A bundle's files as the repository of a model server, which answers on them as the bundle does.

No server has been run by this project: what is written for Triton is held against its own protobuf
schema, for DeepStream against the keys that its plugin reads, and the client has been tried on a
stand-in that speaks the servers' protocol.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmt.bundle.arrays import read_array
from cmt.bundle.reader import OpenBundle
from cmt.errors import InputError
from cmt.files import move
from cmt.targets.base import Served
from cmt.targets.entries import Entry
from cmt.targets.registry import TARGETS

VERSION = "1"
"""The folder of a model's files; servers take the highest."""
LABELS = "labels.txt"
DESCRIPTION = "models.json"
"""For the client."""
CLIENT = '''\
"""Asks a server for the golden answers of each model here: python client.py http://HOST:PORT"""

import json
import sys
import urllib.request
from pathlib import Path

import numpy as np

here, failed = Path(__file__).parent, False
images = np.load(here / "images.npy")  # uint8, resized and cropped
for model in json.loads((here / "models.json").read_text()):
    found = [[] for _ in model["expected"]]
    for begin in range(0, len(images), model["batch"]):
        batch = images[np.arange(begin, begin + model["batch"]) % len(images)]
        given = {"name": model["input"], "shape": batch.shape, "datatype": "UINT8"}
        body = json.dumps({"inputs": [{**given, "data": batch.ravel().tolist()}]}).encode()
        url = f"{sys.argv[1]}/v2/models/{model['name']}/infer"
        answer = json.load(urllib.request.urlopen(urllib.request.Request(url, body)))
        by_name = {one["name"]: np.reshape(one["data"], one["shape"]) for one in answer["outputs"]}
        for parts, name in zip(found, model["outputs"]):
            parts.extend(by_name[name])
    for parts, file in zip(found, model["expected"]):
        expected = np.load(here / file)
        worst = np.abs(np.stack(parts)[: len(images)] - expected).max()
        difference = worst / np.abs(expected).max()
        failed |= not difference <= model["max_rel"]
        print(f"{model['name']}: differs by {difference:.1e}, {model['max_rel']:g} allowed")
sys.exit(failed)
'''


@dataclass(frozen=True)
class _Model:
    """A file of the bundle as a server has it.

    Attributes:
        shapes: of the outputs, by name, for one batch.
    """

    name: str
    entry: Entry
    served: Served
    shapes: dict[str, tuple[int, ...]]


def repository_of(bundle: Path, server: str) -> Path:
    """Where a server's repository goes where nobody says: beside the bundle."""
    return bundle.with_name(f"{bundle.name}-{server}")


def write_repository(bundle: OpenBundle, server: str, out: Path, force: bool = False) -> list[str]:
    """Write the files that a server of this name runs, their configuration and a client.

    Args:
        server: one of `SERVERS`.
        out: a folder that is not there yet, or, with `force`, one that was written so.

    Returns:
        a line for each file that is left out.

    Raises:
        InputError: the folder is there, the server cannot prepare images for the files, or runs
            none of them.
    """
    row = SERVERS[server]
    refusal = row.refuses(bundle)
    if refusal is not None:
        raise InputError(f"{bundle.path} {refusal}")
    if out.exists() and not (force and (out / DESCRIPTION).is_file()):
        raise InputError(f"{out} is there already: remove it, or name another folder")
    found = [_model(bundle, entry, server) for entry in bundle.artefacts]
    models = [one for one in found if isinstance(one, _Model)]
    left_out = [one for one in found if isinstance(one, str)]
    if not models:
        raise InputError(f"{server} runs none of the bundle's files: {'; '.join(left_out)}")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for model in models:
            _copy(bundle, model, partial / model.name / VERSION)
        row.configure(bundle, models, partial)
        _describe(bundle, models, partial)
        if row.has_client:
            _write_client(bundle, models, partial)
        if out.exists():
            shutil.rmtree(out)
        move(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [*left_out, *row.notes(bundle)]


def _model(bundle: OpenBundle, entry: Entry, server: str) -> _Model | str:
    """The file as the server has it, or why it is left out."""
    row = TARGETS.get(entry["target"])
    if row is None or server not in row.served:
        return f"{entry['path']}: {server} has nothing that runs {entry['target']} files"
    reason = row.not_served(entry)
    if reason is not None:
        return f"{entry['path']}: {reason}"
    batch = bundle.manifest["input"]["shape"][0]
    pairs = zip(bundle.manifest["outputs"], entry["golden"]["outputs"], strict=True)
    shapes = {
        name: (batch, *read_array(bundle.file(golden), np.float32).shape[1:])
        for name, golden in pairs
    }
    name = f"{Path(entry['path']).name.split('.')[0]}_{entry['target']}_{entry['precision']}"
    return _Model(name, entry, row.served[server], shapes)


def _copy(bundle: OpenBundle, model: _Model, folder: Path) -> None:
    """The file, and what belongs to it, by the names that the server looks for."""
    folder.mkdir(parents=True)
    path, called = Path(model.entry["path"]), Path(model.served.file)
    for entry in bundle.manifest["artefacts"]:
        other = Path(entry["path"])
        if other.parent == path.parent and other.stem == path.stem:
            name = called.name if other == path else called.with_suffix(other.suffix).name
            shutil.copyfile(bundle.file(entry), folder / name)


def _write_client(bundle: OpenBundle, models: list[_Model], folder: Path) -> None:
    (folder / "client.py").write_text(CLIENT, encoding="utf-8")
    shutil.copyfile(bundle.file(bundle.manifest["golden"]["images"]), folder / "images.npy")
    for model in models:
        files = _expected(model)
        for entry, file in zip(model.entry["golden"]["outputs"], files, strict=True):
            shutil.copyfile(bundle.file(entry), folder / file)


def _expected(model: _Model) -> list[str]:
    """The files of a model's golden answers."""
    return [f"{model.name}-{output}.npy" for output in model.shapes]


def _describe(bundle: OpenBundle, models: list[_Model], folder: Path) -> None:
    described = [
        {
            "name": model.name,
            "input": bundle.manifest["input"]["name"],
            "batch": bundle.manifest["input"]["shape"][0],
            "outputs": list(model.shapes),
            "expected": _expected(model),
            "max_rel": model.entry["golden"]["max_rel"],
        }
        for model in models
    ]
    (folder / DESCRIPTION).write_text(json.dumps(described, indent=1), encoding="utf-8")


def _write_labels(bundle: OpenBundle, folder: Path, between: str = "\n") -> None:
    if bundle.manifest["labels"]:
        text = between.join(bundle.manifest["labels"])
        (folder / LABELS).write_text(f"{text}\n", encoding="utf-8")


def _configure_triton(bundle: OpenBundle, models: list[_Model], folder: Path) -> None:
    for model in models:
        lines = _config_lines(bundle, model)
        (folder / model.name / "config.pbtxt").write_text("".join(lines), encoding="utf-8")
        _write_labels(bundle, folder / model.name)


def _config_lines(bundle: OpenBundle, model: _Model) -> Iterator[str]:
    """Triton's `ModelConfig`, of a file whose batch is fixed."""
    described = bundle.manifest["input"]
    yield f"name: {json.dumps(model.name)}\nbackend: {json.dumps(model.served.backend)}\n"
    yield f"max_batch_size: 0\ninstance_group [{{ kind: {model.served.kind} count: 1 }}]\n"
    shape = ", ".join(map(str, described["shape"]))
    name = json.dumps(described["name"])
    yield f"input [{{ name: {name} data_type: TYPE_UINT8 dims: [{shape}] }}]\n"
    labels = f" label_filename: {json.dumps(LABELS)}" if bundle.manifest["labels"] else ""
    for output, dimensions in model.shapes.items():
        shape = ", ".join(map(str, dimensions))
        typed = f"name: {json.dumps(output)} data_type: TYPE_FP32 dims: [{shape}]"
        yield f"output [{{ {typed}{labels} }}]\n"


def _configure_ovms(bundle: OpenBundle, models: list[_Model], folder: Path) -> None:
    """For a server that sees this folder as `/models`."""
    entries = []
    for model in models:
        config = {"name": model.name, "base_path": f"/models/{model.name}"}
        settings = model.entry["settings"]
        entries.append({"config": {**config, **({"plugin_config": settings} if settings else {})}})
    text = json.dumps({"model_config_list": entries}, indent=1)
    (folder / "config.json").write_text(text, encoding="utf-8")
    _write_labels(bundle, folder)


def _normalises_outside(bundle: OpenBundle) -> str | None:
    if bundle.manifest["input"]["dtype"] == "uint8":
        return None
    return (
        "wants its images normalised by the client: export with --embed-preprocess, so that a "
        "server gives the bundle's own answers"
    )


def _not_for_deepstream(bundle: OpenBundle) -> str | None:
    """Gst-nvinfer hands over floats, y = net-scale-factor * (x - offsets[channel])."""
    described, labels = bundle.manifest["input"], bundle.manifest["labels"]
    by_triton = "have Gst-nvinferserver ask Triton (--embed-preprocess and --for triton)"
    if described["dtype"] == "uint8":
        return f"normalises inside, and Gst-nvinfer hands over floats: export anew, or {by_triton}"
    if len(set(described["std"])) > 1:
        stated = ", ".join(map(str, described["std"]))
        return f"divides by {stated}, and Gst-nvinfer scales all channels alike: {by_triton}"
    if bundle.manifest["outputs"] != ["logits"]:
        return "gives no class scores, and Gst-nvinfer labels by these: export --output logits"
    if not labels or any(";" in label for label in labels):
        return "needs labels, without ';', which Gst-nvinfer splits its list at"
    return None


def _configure_deepstream(bundle: OpenBundle, models: list[_Model], folder: Path) -> None:
    """Gst-nvinfer's file for each engine; paths in it are seen from where it lies."""
    for model in models:
        lines = [f"{key}={value}\n" for key, value in _nvinfer(bundle, model).items()]
        text = "".join(["[property]\n", *lines])
        (folder / model.name / "config_infer_primary.txt").write_text(text, encoding="utf-8")
        _write_labels(bundle, folder / model.name, between=";")


def _nvinfer(bundle: OpenBundle, model: _Model) -> dict[str, object]:
    """The keys of `gstnvinfer_property_parser.h`, of DeepStream 7."""
    described = bundle.manifest["input"]
    batch, _, height, width = described["shape"]
    return {
        "model-engine-file": f"{VERSION}/{model.served.file}",
        "labelfile-path": LABELS,
        "batch-size": batch,
        "infer-dims": f"3;{height};{width}",
        "network-input-order": 0,  # NCHW
        "network-mode": {"fp32": 0, "int8": 1, "fp16": 2}[model.entry["precision"]],
        "network-type": 1,  # a classifier
        "process-mode": 1,  # of whole frames
        "gie-unique-id": 1,
        "model-color-format": 0,  # red first
        "net-scale-factor": f"{1 / (255 * described['std'][0]):.17g}",
        "offsets": ";".join(f"{255 * one:.17g}" for one in described["mean"]),
        "maintain-aspect-ratio": 0,
        "output-blob-names": ";".join(model.shapes),
        "classifier-threshold": 0,
        "output-tensor-meta": 1,  # all scores, for whoever wants probabilities
    }


def _deepstream_notes(bundle: OpenBundle) -> list[str]:
    described = bundle.manifest["input"]
    box, size = (
        "x".join(map(str, one)) for one in (described["resize"]["box"], described["crop"]["size"])
    )
    return [
        f"Gst-nvinfer stretches frames to {size} with a filter of its own, where the bundle covers "
        f"{box} and crops the centre: answers differ, measure the accuracy there",
        "Gst-nvinfer shows scores in place of probabilities, and labels nothing where none is "
        "above 0: take the tensor of output-tensor-meta",
    ]


@dataclass(frozen=True)
class Server:
    """What is written for a model server.

    Attributes:
        configure: writes the configuration of its models.
        refuses: why it cannot prepare images as a bundle wants them.
        notes: what will not be as in the bundle.
        has_client: it is asked over HTTP, and so for the golden answers.
        runs_exports: it has files of those that an export builds, not on the device alone.
    """

    configure: Callable[[OpenBundle, list[_Model], Path], None]
    refuses: Callable[[OpenBundle], str | None] = _normalises_outside
    notes: Callable[[OpenBundle], list[str]] = lambda _: []
    has_client: bool = True
    runs_exports: bool = True


SERVERS = {
    "triton": Server(_configure_triton),
    "ovms": Server(_configure_ovms),
    "deepstream": Server(
        _configure_deepstream,
        _not_for_deepstream,
        _deepstream_notes,
        has_client=False,
        runs_exports=False,
    ),
}
