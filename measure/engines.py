"""Engines built on the machine that they are for, from a bundle's ONNX files."""

from __future__ import annotations

from pathlib import Path

from cmt.errors import GateError
from export.tensorrt import BuildSettings, Task, build_engine, find_gpu, not_for_here
from measure.bundle import (
    Entry,
    OpenBundle,
    describe_file,
    open_bundle,
    replacing_files,
    write_manifest,
)
from measure.environment import usable_cores
from measure.golden import check_artefact, golden_images
from measure.runners import missing_runtime


def build_for_here(bundle: OpenBundle, settings: BuildSettings, task: Task) -> OpenBundle:
    """Replace the bundle's engines that cannot be loaded here by ones for this machine's GPU.

    Each is checked on the golden images before it gets into the bundle.

    Raises:
        InputError: TensorRT cannot build from the bundle's ONNX file, or lacks memory.
        GateError: the build fails, or the engine does not compute what it should.
    """
    if missing_runtime("tensorrt") is not None:
        return bundle
    for artefact in bundle.artefacts:
        if artefact["target"] != "tensorrt":
            continue
        if not_for_here(artefact, _graph_of(bundle, artefact)["sha256"]) is None:
            continue
        with replacing_files(bundle) as folder:
            path = folder / artefact["path"]
            path.parent.mkdir(parents=True)
            entry = _build(bundle, artefact, path, settings, task)
            entry |= describe_file(folder, path)
            manifest = open_bundle(bundle.path).manifest  # another process may have put a report in
            entries = [entry if a["path"] == entry["path"] else a for a in manifest["artefacts"]]
            bundle = OpenBundle(bundle.path, {**manifest, "artefacts": entries})
            write_manifest(folder, bundle.manifest)
    return bundle


def _graph_of(bundle: OpenBundle, engine: Entry) -> Entry:
    """The ONNX file that an engine is built from."""
    wanted = ("onnx", engine["precision"])
    artefacts = bundle.manifest["artefacts"]
    return next(a for a in artefacts if (a["target"], a["precision"]) == wanted)


def _build(
    bundle: OpenBundle, artefact: Entry, path: Path, settings: BuildSettings, task: Task
) -> Entry:
    """Build and check an engine; returns its entry, with an absolute `path`."""
    gpu = find_gpu()
    graph = bundle.file(_graph_of(bundle, artefact))
    archs = [] if gpu is None else [gpu.arch]
    info = build_engine(graph, path, archs, settings, task)
    kept = {key: artefact[key] for key in ("target", "precision", "settings", "golden")}
    described = {**describe_file(path.parent, path), "path": str(path.absolute())}
    entry = {**kept, **info, **described}
    images = golden_images(bundle)
    batch = bundle.preprocessing.feed(images)
    check = check_artefact(bundle, entry, batch, usable_cores())
    if not check.passed:
        raise GateError(
            f"the engine built here from {graph.name} {check.detail}: it is not kept; look for a "
            "newer TensorRT"
        )
    return entry
