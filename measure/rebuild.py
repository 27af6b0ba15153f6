"""Files built on the machine that they are for, from a bundle's ONNX files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cmt.bundle.golden import check_artefact, golden_images
from cmt.bundle.reader import OpenBundle, open_bundle
from cmt.bundle.writer import describe_file, replacing_files, write_manifest
from cmt.errors import GateError
from cmt.targets.base import OnDevice, Task
from cmt.targets.entries import Built, Entry, FileEntry
from cmt.targets.machine import usable_cores
from cmt.targets.registry import TARGETS, distrusted, missing_runtime


def build_for_here(bundle: OpenBundle, settings: Any, task: Task) -> OpenBundle:
    """Replace the files that are built on the device and cannot be loaded here, or are outdated.

    Those of a bundle that nobody vouches for are never loaded, and so replaced too.

    Each is checked on the golden images before it gets into the bundle.

    Args:
        settings: of a build, such as `targets.tensorrt.build.BuildSettings`.

    Raises:
        InputError: the settings ask for what cannot be built here, the runtime cannot build from
            the bundle's ONNX file, or lacks memory.
        GateError: the build fails, or the file does not compute what it should.
    """
    for artefact in bundle.artefacts:
        maker = _maker(artefact)
        if maker is None:
            continue
        graph = _graph_of(bundle, artefact)
        usable = distrusted(artefact, bundle.trusted) is None
        if usable and not maker.outdated(artefact, graph["sha256"], settings):
            continue
        with replacing_files(bundle) as folder:
            path = folder / artefact["path"]
            path.parent.mkdir(parents=True)
            info = maker.build(bundle.file(graph), path, artefact, settings, task)
            checked = _checked(bundle, artefact, path, info)
            entry: Entry = {**checked, **describe_file(folder, path)}
            manifest = open_bundle(bundle.path).manifest  # another process may have put a report in
            entries = [entry if a["path"] == entry["path"] else a for a in manifest["artefacts"]]
            bundle = replace(bundle, manifest={**manifest, "artefacts": entries})
            write_manifest(folder, bundle.manifest)
    return bundle


def why_none_is_built(bundle: OpenBundle) -> str | None:
    """Why nothing would be built here, so that settings of a build would say nothing."""
    made = [name for name, target in TARGETS.items() if target.on_device is not None]
    reasons = [missing_runtime(name) for name in made]
    if all(reasons):
        return next(iter(reasons), "this version builds nothing on devices")
    if not any(_maker(artefact) for artefact in bundle.artefacts):
        return "the bundle has no engines"
    return None


def notes(bundle: OpenBundle) -> list[str]:
    """What people should know of the files that were built on the device, a line each."""
    made = [(artefact, TARGETS.get(artefact["target"])) for artefact in bundle.artefacts]
    return [
        line
        for artefact, target in made
        if target is not None and target.on_device is not None
        for line in target.on_device.notes(artefact)
    ]


def _maker(artefact: Entry) -> OnDevice | None:
    """What builds a file anew here; None for one that needs no such thing, or where it cannot."""
    target = TARGETS.get(artefact["target"])
    if target is None or target.missing_runtime() is not None:
        return None
    return target.on_device


def _graph_of(bundle: OpenBundle, artefact: Entry) -> Entry:
    """The ONNX file that a file is built from."""
    wanted = ("onnx", artefact["precision"])
    artefacts = bundle.manifest["artefacts"]
    return next(a for a in artefacts if (a["target"], a["precision"]) == wanted)


def _checked(bundle: OpenBundle, artefact: Entry, path: Path, info: Built) -> Entry:
    """The entry of a file that was built, once it has answered as it should."""
    described: FileEntry = {**describe_file(path.parent, path), "path": str(path.absolute())}
    entry: Entry = {
        "target": artefact["target"],
        "precision": artefact["precision"],
        "settings": artefact["settings"],
        "golden": artefact["golden"],
        **info,
        **described,
    }
    batch = bundle.preprocessing.feed(golden_images(bundle))
    check = check_artefact(bundle, entry, batch, usable_cores())
    if not check.passed:
        raise GateError(
            f"the file built here for {artefact['path']} {check.detail}: it is not kept; look for "
            f"a newer {artefact['target']}"
        )
    return entry
