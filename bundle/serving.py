"""A bundle's files as the repository of a model server, which answers on them as the bundle does.

Neither server has been run by this project: what is written for Triton is held against its own
protobuf schema, and the client has been tried on a stand-in that speaks the servers' protocol.
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
        InputError: the folder is there, the files normalise outside, or the server runs none.
    """
    if bundle.manifest["input"]["dtype"] != "uint8":
        raise InputError(
            f"{bundle.path} wants its images normalised by the client: export with "
            "--embed-preprocess, so that a server gives the bundle's own answers"
        )
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
        SERVERS[server](bundle, models, partial)
        _write_client(bundle, models, partial)
        if out.exists():
            shutil.rmtree(out)
        move(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return left_out


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
    described = []
    for model in models:
        golden = model.entry["golden"]
        files = [f"{model.name}-{output}.npy" for output in model.shapes]
        for entry, file in zip(golden["outputs"], files, strict=True):
            shutil.copyfile(bundle.file(entry), folder / file)
        described.append(
            {
                "name": model.name,
                "input": bundle.manifest["input"]["name"],
                "batch": bundle.manifest["input"]["shape"][0],
                "outputs": list(model.shapes),
                "expected": files,
                "max_rel": golden["max_rel"],
            }
        )
    (folder / DESCRIPTION).write_text(json.dumps(described, indent=1), encoding="utf-8")


def _configure_triton(bundle: OpenBundle, models: list[_Model], folder: Path) -> None:
    labels = bundle.manifest["labels"]
    for model in models:
        lines = _config_lines(bundle, model)
        (folder / model.name / "config.pbtxt").write_text("".join(lines), encoding="utf-8")
        if labels:
            text = "".join(f"{label}\n" for label in labels)
            (folder / model.name / LABELS).write_text(text, encoding="utf-8")


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
    if bundle.manifest["labels"]:
        text = "".join(f"{label}\n" for label in bundle.manifest["labels"])
        (folder / LABELS).write_text(text, encoding="utf-8")


SERVERS: dict[str, Callable[[OpenBundle, list[_Model], Path], None]] = {
    "triton": _configure_triton,
    "ovms": _configure_ovms,
}
"""Model servers, and what writes the configuration of their models."""
