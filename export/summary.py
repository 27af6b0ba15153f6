"""What a run found, put into the words of report.json and manifest.json."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np

from cmt.bundle.manifest import VERSION as MANIFEST_VERSION
from cmt.bundle.manifest import GoldenInputs, Manifest
from cmt.bundle.writer import describe_file
from cmt.calib_data.prepared import PreparedImages
from cmt.export.confirmation import gates
from cmt.export.context import Context
from cmt.export.graphs import Candidate
from cmt.export.inputs import Inputs
from cmt.export.onnx_graph import INPUT_NAME, PIXELS_NAME, output_names
from cmt.export.options import ExportOptions
from cmt.measure.changes import changes, class_names
from cmt.measure.shards import FileAnswers
from cmt.measure.statistics import compare_answers
from cmt.measure.timing import Timing, speedup
from cmt.network import count_macs
from cmt.report.document import REPORT_FILES
from cmt.report.rows import (
    UNTIMED,
    Accuracy,
    Calibration,
    Changed,
    Extras,
    Fallback,
    Images,
    Parity,
    PartErrors,
    Ran,
    Report,
    Row,
    Speed,
    Tuning,
)
from cmt.report.upgrade import VERSION as REPORT_VERSION
from cmt.targets.base import Prediction
from cmt.targets.entries import Entry
from cmt.targets.machine import NO_PEAK_RSS
from cmt.targets.reference import TORCH
from cmt.targets.settings import Settings, settings_of_run


@dataclass(frozen=True)
class Results:
    """Everything that a finished run made and measured.

    Attributes:
        graphs: the ONNX files that go into the bundle, by name.
        built: the stage folder of each candidate's file, by candidate name.
        stem: of the files' names.
        fine_tuning: the report's; None where there was none.
        reference: what the torch network answers to the validation images.
        answers: the same of every candidate's file, by candidate name.
        timings: by candidate name, and `targets.reference.TORCH`.
        predicted: what a builder says of files for GPUs, by candidate name.
        parity: a row for each arrow.
        calibration: how each recipe's ranges were chosen.
        sensitivity: None where it was not measured, for `no_sensitivity`.
        fallbacks: what was tried for each file that exceeded `--max-drop`.
    """

    context: Context
    candidates: Sequence[Candidate]
    graphs: Mapping[str, Path]
    built: Mapping[str, Path]
    stem: str
    fine_tuning: Tuning | None
    reference: FileAnswers
    answers: Mapping[str, FileAnswers]
    timings: Mapping[str, Timing]
    predicted: Mapping[str, Prediction | None]
    parity: list[Parity]
    calibration: list[Calibration]
    sensitivity: list[PartErrors] | None
    no_sensitivity: str | None
    fallbacks: list[Fallback]
    warnings: list[str]

    @property
    def options(self) -> ExportOptions:
        return self.context.options

    @property
    def inputs(self) -> Inputs:
        return self.context.inputs

    @property
    def validation(self) -> PreparedImages:
        return self.context.images.validation

    @property
    def calibration_images(self) -> PreparedImages | None:
        return self.context.images.calibration


def build_report(results: Results, artefacts: Sequence[Entry]) -> Report:
    """The content of report.json (see `report/schema/report.schema.json`)."""
    model, options = results.inputs.model, results.options
    rows = [_row(results, candidate, artefacts) for candidate in results.candidates]
    return {
        "schema": REPORT_VERSION,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": options.command,
        "variant": model.variant.name,
        "family": model.family.name,
        "output": options.output,
        "img_size": list(model.img_size),
        "weights": {
            "source": results.inputs.weights_source,
            "sha256": results.inputs.weights_sha256,
            "parameters": sum(p.numel() for p in model.parameters()),
            "macs": count_macs(model, model.img_size),
        },
        "images": _images(results),
        **_given(fine_tuning=results.fine_tuning),
        "warnings": results.warnings,
        "gates": gates(rows, options.max_drop, options.confirm),
        "baseline": _baseline(results),
        "results": rows,
        "parity": results.parity,
        "sensitivity": results.sensitivity,
        **_given(sensitivity_reason=results.no_sensitivity),
        "calibration": results.calibration,
        "fallbacks": results.fallbacks,
        "environment": results.context.machine,
    }


def _given(**fields: object) -> Extras:
    """The fields that have a value."""
    return cast(Extras, {name: value for name, value in fields.items() if value is not None})


def _baseline(results: Results) -> Row:
    reasons = {
        "bytes": "the network is held in memory, not in a file of the bundle",
        "speedup_vs_fp32_graph": "this is no exported graph",
    }
    return {
        "target": TORCH,
        "precision": "fp32",
        "artefact": None,
        "bytes": None,
        "measured_by": TORCH,
        "simulated": False,
        "accuracy": _accuracy(results, results.reference, reasons),
        **_speed(results, TORCH, None, reasons),
        **_settings(results, TORCH, {}),
        "reasons": reasons,
    }


def _row(results: Results, candidate: Candidate, artefacts: Sequence[Entry]) -> Row:
    reasons: dict[str, str] = {}
    names = (candidate.target.name, candidate.precision)
    files = [a for a in artefacts if (a["target"], a["precision"]) == names]
    main = next(a for a in files if a["path"].endswith(f".{candidate.target.suffix}"))
    accuracy = _accuracy(results, results.answers[candidate.name], reasons)
    own = main["settings"]
    if not candidate.target.simulated:
        own = results.context.settings(own)
    plain = f"{candidate.target.name}/fp32"
    row: Row = {
        "target": candidate.target.name,
        "precision": candidate.precision,
        "artefact": main["path"],
        "bytes": sum(a["bytes"] for a in files),
        "measured_by": candidate.target.runtime,
        "simulated": candidate.target.simulated,
        "accuracy": accuracy,
        **_speed(results, candidate.name, plain, reasons, candidate),
        **_settings(results, candidate.name, own),
        **_changes(results, results.answers[candidate.name]),
        "reasons": reasons,
    }
    predicted = results.predicted[candidate.name]
    return row if predicted is None else {**row, "predicted": predicted}


def _changes(results: Results, answers: FileAnswers) -> Changed:
    """The row's `changes`; nothing where there are no labels to tell right from wrong."""
    if results.inputs.not_labelled is not None:
        return {}
    images = results.validation
    assert images.labels is not None
    first, before = answers.first[:, 0], results.reference.first[:, 0]
    names = class_names(results.inputs.class_names)

    def image(i: int) -> tuple[str, np.ndarray]:
        return images.keys[i], images.pixels[np.array([i])][0]

    return {"changes": changes(first, before, images.labels, names, image)}


def _settings(results: Results, name: str, own: Settings) -> Ran:
    """The row's `settings`, and what else its runtime tells."""
    asked = settings_of_run(own, results.options.thread_count, results.options.batch)
    timing = results.timings.get(name)
    return {"settings": asked} if timing is None else timing.settings(asked)


def _accuracy(results: Results, answers: FileAnswers, reasons: dict[str, str]) -> Accuracy | None:
    if results.inputs.not_labelled is not None:
        reasons["accuracy"] = results.inputs.not_labelled
        return None
    labels = results.validation.labels
    assert labels is not None
    accuracy = compare_answers(answers, results.reference, labels)
    return cast(Accuracy, {**asdict(accuracy), "drop_ci95": list(accuracy.drop_ci95)})


def _speed(
    results: Results,
    name: str,
    plain: str | None,
    reasons: dict[str, str],
    candidate: Candidate | None = None,
) -> Speed:
    """The row's measurements of time and memory; `plain` names the FP32 graph to compare with."""
    speed: Speed = {**UNTIMED}
    if name not in results.timings:
        assert candidate is not None
        assert candidate.target.not_timed is not None
        reasons |= dict.fromkeys(speed, candidate.target.not_timed())
        return speed
    timing = results.timings[name]
    latency = timing.latency
    speed["latency_ms"] = latency
    speed["timing"] = timing.quality
    speed["throughput_ips"] = results.options.batch * 1000 / latency["mean"]
    speed["speedup_vs_baseline"] = speedup(timing, results.timings[TORCH])
    if plain is not None:
        speed["speedup_vs_fp32_graph"] = speedup(timing, results.timings[plain])
    if timing.busy is not None:
        fields = ("speedup_vs_baseline", "speedup_vs_fp32_graph")
        reasons |= {field: timing.busy for field in fields if field not in reasons}
    speed["peak_rss_mb"] = timing.peak_rss_mb
    if timing.peak_rss_mb is None:
        reasons["peak_rss_mb"] = NO_PEAK_RSS
    return speed


def _images(results: Results) -> Images:
    validation, calibration = results.validation, results.calibration_images
    given = results.inputs.calibration
    return {
        "validation": len(validation),
        "validation_available": validation.available,
        "validation_skipped": len(validation.skipped),
        "validation_sha256": validation.sha256,
        "source": validation.description,
        "calibration": 0 if calibration is None else len(calibration),
        "calibration_skipped": 0 if calibration is None else len(calibration.skipped),
        "calibration_sha256": None if calibration is None else calibration.sha256,
        "calibration_source": None if calibration is None else calibration.description,
        "validation_left_out": results.inputs.validation.left_out,
        "calibration_left_out": 0 if given is None else given.left_out,
        "ranking": results.context.images.held_out_count,
    }


def build_manifest(
    results: Results, artefacts: Sequence[Entry], golden: GoldenInputs, folder: Path
) -> Manifest:
    """The content of manifest.json.

    Args:
        golden: the golden inputs' entry.
        folder: the bundle, complete up to the manifest.
    """
    model, options = results.inputs.model, results.options
    calibration = results.calibration_images
    return {
        "schema": MANIFEST_VERSION,
        "variant": model.variant.name,
        "family": model.family.name,
        "input": {
            "name": PIXELS_NAME if options.embed_preprocess else INPUT_NAME,
            **results.inputs.preprocessing.describe(options.batch),
        },
        "outputs": output_names(model.head is None),
        "labels": list(results.inputs.class_names),
        "artefacts": list(artefacts),
        "golden": golden,
        "reports": [describe_file(folder, folder / name) for name in REPORT_FILES],
        "calibration": {
            "images": 0 if calibration is None else len(calibration),
            "sha256": None if calibration is None else calibration.sha256,
        },
        "environment": results.context.machine,
        "licence": {
            "toolchain": "MIT",
            "weights": _weights_licence(results.inputs),
            "images": f"golden images from {results.validation.description}: its terms apply",
        },
    }


def _weights_licence(inputs: Inputs) -> str:
    if inputs.weights_source == "random":
        return "random numbers, no licence needed"
    if inputs.weights_source == "demo":
        return "MIT; trained on Fashion-MNIST, Copyright 2017 Zalando SE, Expat licence"
    stated = inputs.model.metadata.get("license")
    return stated or f"not stated in the weights ({inputs.weights_source}): ask who made them"
