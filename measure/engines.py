"""Engines built on the machine that they are for, from a bundle's ONNX files."""

from __future__ import annotations

from pathlib import Path

from cmt.errors import GateError, InputError
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

    So is one that the settings ask to be compatible with more, or to run on another DLA core. Each
    is checked on the golden images before it gets into the bundle.

    Raises:
        InputError: the settings ask for what cannot be built here, TensorRT cannot build from the
            bundle's ONNX file, or lacks memory.
        GateError: the build fails, or the engine does not compute what it should.
    """
    if missing_runtime("tensorrt") is not None:
        return bundle
    for artefact in bundle.artefacts:
        if artefact["target"] != "tensorrt":
            continue
        usable = not_for_here(artefact, _graph_of(bundle, artefact)["sha256"]) is None
        if usable and _as_asked(artefact, settings):
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


def require_engines(bundle: OpenBundle) -> None:
    """Raises InputError where nothing would be built: settings of a build would say nothing."""
    reason = missing_runtime("tensorrt")
    if reason is None and all(entry["target"] != "tensorrt" for entry in bundle.artefacts):
        reason = "the bundle has no engines"
    if reason is not None:
        raise InputError(f"--compatible and --dla are for engines, and {reason}: leave them out")


def on_dla(bundle: OpenBundle) -> list[str]:
    """A line for each engine that uses a DLA core, which names the layers that it cannot run."""
    lines = []
    for entry in bundle.artefacts:
        if "dla" in entry:
            dla, elsewhere = entry["dla"], entry["dla"]["on_gpu"]
            count = dla["layers"] - len(elsewhere)
            lines.append(
                f"{entry['path']}: DLA core {dla['core']} can run {count} of {dla['layers']} "
                f"layers; on the GPU: {', '.join(elsewhere) or 'none'}"
            )
    return lines


def _as_asked(engine: Entry, settings: BuildSettings) -> bool:
    """Whether an engine is what the settings ask for; what they leave open stays as it is."""
    compatible = set(settings.compatible) <= set(engine.get("compatible", ()))
    core = engine["dla"]["core"] if "dla" in engine else None
    return compatible and settings.dla in (None, core)


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
    batches = artefact.get("batches")
    info = build_engine(graph, path, archs, settings, task, batches and tuple(batches))
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
