"""The bundle as an export fills it: graphs, files, golden images and answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from cmt import strict_json
from cmt.bundle.golden import MAX_GREY_LEVELS, TOLERANCES, make_photo
from cmt.bundle.manifest import GoldenInputs, Manifest, TorchAnswers
from cmt.bundle.sbom import build_sbom
from cmt.bundle.signature import Signer
from cmt.bundle.torch_answers import write_answers
from cmt.bundle.writer import describe_file, write_manifest
from cmt.calib_data.preprocessing import Preprocessing
from cmt.export.evaluation import golden_places
from cmt.export.graphs import GRAPHS, Candidate
from cmt.export.onnx_graph import output_names
from cmt.export.options import ExportOptions
from cmt.export.summary import Results, build_manifest, build_report
from cmt.export.toml import CONFIG, config_text
from cmt.report.document import REPORT_FILES, write_report
from cmt.report.model_card import model_card
from cmt.report.rows import Report
from cmt.targets.base import run_all
from cmt.targets.entries import Built, Entry, FileEntry, Float32Answers, GoldenOutputs
from cmt.targets.registry import LOADERS
from cmt.targets.settings import PRECISION, built_settings


def assemble(results: Results, folder: Path, run: str, signers: Sequence[Signer]) -> Report:
    """Fill a new folder with all that belongs into the bundle; returns the report.

    Args:
        run: identity of the run, for the manifest.
        signers: sign the bundle; none leave it unsigned.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    inputs, candidates = results.inputs, results.candidates
    golden_images = golden_places(results.validation)
    pixels = results.validation.pixels[golden_images]
    golden = write_golden_inputs(folder, pixels, inputs.preprocessing)
    names = output_names(results.options.output == "features")
    answers = {
        c.name: write_golden_outputs(
            folder,
            c,
            names,
            results.answers[c.name].at(golden_images),
            float32_answers(results, c),
        )
        for c in candidates
    }
    artefacts = copy_artefacts(
        folder, results.stem, results.graphs, candidates, results.built, answers
    )
    report = build_report(results, artefacts)
    write_report(report, folder)
    sbom = write_sbom(folder, report, inputs.class_names)
    manifest: Manifest = {
        **build_manifest(results, artefacts, golden, folder),
        "sbom": sbom,
        "config": write_config(folder, results.options),
        "run": run,
    }
    if results.options.output != "features":
        manifest["answers"] = torch_answers(folder, results)
    if signers:
        manifest["exported"] = keep_exported(folder)
    write_manifest(folder, manifest)
    for sign in signers:
        sign(folder, manifest)
    return report


def torch_answers(folder: Path, results: Results) -> TorchAnswers:
    """Torch's answers to the validation images; returns the manifest's `answers`."""
    classes, names = results.inputs.label_map or {}, results.inputs.validation.class_names
    folders = {names[i]: label for i, label in classes.items()}
    torch, digests = results.reference, results.validation.digests
    return write_answers(folder, digests, torch.first, torch.logits, folders)


def keep_exported(folder: Path) -> FileEntry:
    """The report once more, where nothing adds to it and it can be signed; its manifest entry."""
    path = folder / "report.exported.json"
    shutil.copyfile(folder / REPORT_FILES[0], path)
    return describe_file(folder, path)


def write_config(folder: Path, options: ExportOptions) -> FileEntry:
    """The options as they were run; returns the file's manifest entry."""
    path = folder / CONFIG
    path.write_text(config_text(options), encoding="utf-8")
    return describe_file(folder, path)


def write_sbom(folder: Path, report: Report, labels: Sequence[str]) -> FileEntry:
    """The bundle's bill of materials, with a model card; returns its manifest entry."""
    path = folder / "sbom.cdx.json"
    sbom = build_sbom(report["weights"]["sha256"], model_card(report, labels))
    path.write_text(strict_json.dump(sbom), encoding="utf-8")
    return describe_file(folder, path)


def copy_artefacts(
    folder: Path,
    stem: str,
    graphs: Mapping[str, Path],
    candidates: Sequence[Candidate],
    built: Mapping[str, Path],
    golden: Mapping[str, GoldenOutputs],
) -> list[Entry]:
    """Copy the ONNX graphs and the targets' files in; returns their manifest entries.

    Args:
        golden: by candidate name, the `golden` of the file that its runtime loads.
    """
    entries = []
    for name, graph in GRAPHS.items():
        if graph.file is None or name not in graphs:
            continue
        path = folder / "model" / graph.file.format(name=stem)
        described: Built = {"built_with": {"torch": version("torch")}, "built_for": []}
        entries.append(_copy(folder, graphs[name], path, "onnx", graph.precision, described))
    for candidate in candidates:
        source = built[candidate.name]
        described = json.loads((source / "built.json").read_text())
        settings = described.pop("settings", {})
        for file in sorted(source.glob(f"{stem}.*")):
            path = folder / candidate.target.name / file.name
            target, precision = candidate.target.name, candidate.precision
            entry = _copy(folder, file, path, target, precision, described)
            if file.suffix == f".{candidate.target.suffix}":
                entry |= {"settings": settings, "golden": golden[candidate.name]}
            entries.append(entry)
    return entries


def _copy(
    folder: Path, source: Path, path: Path, target: str, precision: str, built: Built
) -> Entry:
    path.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, path)
    return {"target": target, "precision": precision, **describe_file(folder, path), **built}


def write_golden_inputs(
    folder: Path, pixels: np.ndarray, preprocessing: Preprocessing
) -> GoldenInputs:
    """Prepared images, and a photo with what preprocessing makes of it; the manifest's `golden`.

    Args:
        pixels: (N, H, W, 3) uint8.
    """
    from PIL import Image

    golden = folder / "golden"
    golden.mkdir()
    np.save(golden / "images.npy", pixels)
    make_photo(golden / "photo.jpg")
    with Image.open(golden / "photo.jpg") as photo:
        np.save(golden / "pixels.npy", preprocessing.apply(photo))
    return {
        "images": describe_file(folder, golden / "images.npy"),
        "photo": describe_file(folder, golden / "photo.jpg"),
        "pixels": describe_file(folder, golden / "pixels.npy"),
        "max_grey_levels": MAX_GREY_LEVELS,
    }


def float32_answers(results: Results, candidate: Candidate) -> list[np.ndarray] | None:
    """What a file that is run in BF16 answers on the golden images in float32; None of others.

    CPUs without BF16 run the same file so, and differ by more than a wrong machine may.
    """
    built, batch = results.built[candidate.name], results.options.batch
    settings = built_settings(built)
    if settings.get(PRECISION) != "bf16":
        return None
    path = next(built.glob(f"*.{candidate.target.suffix}"))
    own = results.context.settings({**settings, PRECISION: "f32"})
    runner = LOADERS[candidate.target.runtime](path, results.context.threads, own, batch)
    images, places = results.context.as_fed(results.validation), golden_places(results.validation)
    return run_all(runner, images.batches(batch, places), len(places), lambda _: None)


def write_golden_outputs(
    folder: Path,
    candidate: Candidate,
    names: Sequence[str],
    outputs: Sequence[np.ndarray],
    in_float32: Sequence[np.ndarray] | None = None,
) -> GoldenOutputs:
    """What a file answered on the golden images; returns the `golden` of its manifest entry.

    Args:
        names: of the network's outputs.
        outputs: one array (N, ...) each.
        in_float32: the same, of a file that is run in BF16, without it.
    """

    def written(arrays: Sequence[np.ndarray], ending: str) -> list[FileEntry]:
        entries = []
        for name, array in zip(names, arrays, strict=True):
            file = f"{candidate.target.name}-{candidate.precision}-{name}{ending}.npy"
            np.save(folder / "golden" / file, array)
            entries.append(describe_file(folder, folder / "golden" / file))
        return entries

    float32: Float32Answers = {}
    if in_float32 is not None:
        float32["outputs_f32"] = written(in_float32, ".f32")
    return {
        "outputs": written(outputs, ""),
        **float32,
        "produced_by": candidate.target.runtime,
        "max_rel": TOLERANCES[candidate.precision],
    }
