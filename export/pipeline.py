"""The order of a run: torch -> ONNX -> simplified -> per target, each arrow checked, then timed.

Each step is a stage on disk (`export.stages`); whatever is checked or measured is the stage's
saved file, loaded again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import cmt
from cmt.bundle import placing, serving, signature
from cmt.bundle.reader import open_bundle
from cmt.errors import GateError, InputError
from cmt.export.answers import asked_reference, reference_network
from cmt.export.assembly import assemble
from cmt.export.calibration import Source
from cmt.export.class_order import order_warning
from cmt.export.context import Context
from cmt.export.evaluation import evaluate, reference_answers
from cmt.export.file_maker import FileMaker
from cmt.export.gate import Verdict, judge
from cmt.export.graph_maker import GraphMaker
from cmt.export.graphs import NONE, PLAIN, Candidate, int8_graph
from cmt.export.image_shards import prepare_all
from cmt.export.image_warnings import image_warnings
from cmt.export.images import HELD_OUT, MOST_HELD_OUT, Selection, select
from cmt.export.inputs import Inputs, resolve
from cmt.export.options import ExportOptions
from cmt.export.stages import Stages
from cmt.export.summary import Results
from cmt.export.unit_sensitivity import Sensitivity
from cmt.measure.parity import require
from cmt.measure.progress import ProgressBars
from cmt.measure.shards import FileAnswers
from cmt.quantize.search import Units
from cmt.report.document import REPORT_FILES
from cmt.report.rows import Parity, Report
from cmt.targets.machine import Hardware, cuts_int8_sums, describe
from cmt.targets.reference import TORCH
from cmt.targets.registry import get_target, plug_in_versions, require_device


@dataclass(frozen=True)
class Bundle:
    """A finished export: its folder, its report, and the gates it failed."""

    path: Path
    report: Report

    @property
    def failures(self) -> list[str]:
        """One line for each accuracy gate that failed."""
        return self.report["gates"]["failures"]


def export(options: ExportOptions, progress: ProgressBars | None = None) -> Bundle:
    """Run an export and return its bundle, complete at `options.bundle`.

    Args:
        progress: shows it; the caller's, who may show before this module is imported.
            None shows nothing.

    Raises:
        InputError: options or input files will not do; nothing is left behind.
        GateError: an arrow of the pipeline failed its parity check; there is no bundle, but
            the finished stages are kept.
            An accuracy gate that fails is no exception: the bundle is there to look at, and
            `Bundle.failures` says so.
    """
    with placing.locked(options.bundle):
        bundle = _export(options, progress or ProgressBars(False))
        for server in dict.fromkeys(options.servers):
            _hand_over(bundle, server)
        return bundle


def _hand_over(bundle: Bundle, server: str) -> None:
    """Write a model server's repository, in place of an earlier one; what it lacks is a warning."""
    place = serving.repository_of(bundle.path, server)
    left_out = serving.write_repository(open_bundle(bundle.path), server, place, force=True)
    bundle.report["warnings"] += left_out


def _export(options: ExportOptions, progress: ProgressBars) -> Bundle:
    placing.recover(options.bundle)
    finished = placing.finished_run(options.bundle) if options.resume else None
    placing.check_destination(options.bundle, options.force or finished is not None)
    plan = make_plan(options)
    if finished == plan.identity:
        placing.Workspace(options.bundle, resume=True).remove()
        written = (options.bundle / REPORT_FILES[0]).read_text(encoding="utf-8")
        return Bundle(options.bundle, json.loads(written))
    placing.check_destination(options.bundle, options.force)
    workspace = placing.Workspace(options.bundle, options.resume)
    try:
        results = run(start(plan, workspace.folder, progress), plan.candidates)
        report = assemble(results, workspace.folder / "bundle", plan.identity, plan.signers)
        placing.place(workspace.folder / "bundle", options.bundle)
    except InputError:
        workspace.discard()
        raise
    except GateError as error:
        raise GateError(f"{error}; finished stages are kept in {workspace.folder}") from error
    workspace.remove()
    return Bundle(options.bundle, report)


@dataclass(frozen=True)
class Plan:
    """What a run builds and reads, found out before any work is done.

    Attributes:
        common: what every stage depends on: the `machine`, of `targets.machine.describe`, the
            program's own `source`, and the `targets` of other packages.
        signers: sign the bundle; none leave it unsigned.
    """

    options: ExportOptions
    candidates: Sequence[Candidate]
    inputs: Inputs
    selections: Mapping[str, Selection]
    common: dict[str, Any]
    signers: Sequence[signature.Signer]

    @property
    def identity(self) -> str:
        """Hash of all that decides the bundle: options, bytes that are read, program, machine."""
        content = {
            "options": self.options.identity,
            "weights": self.inputs.weights_sha256,
            "images": {name: chosen.key for name, chosen in self.selections.items()},
            "common": self.common,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def make_plan(options: ExportOptions, most_held_out: int = MOST_HELD_OUT) -> Plan:
    """Look at all that an export reads; raises InputError for what will not do."""
    from cmt.bundle.sbom import check_installed

    check_installed()  # the bundle lists what made it
    signers = signature.read_signers(options.sign)
    candidates = [
        Candidate(target, precision)
        for target in (get_target(name) for name in dict.fromkeys(options.targets))
        for precision in target.precisions(options.precisions)
    ]
    _require_device(options, candidates)
    inputs = resolve(options, any(c.precision == "int8" for c in candidates))
    inputs.warnings += _precisions_left_out(options, candidates)
    selections = select(inputs, options, most_held_out)
    common = {
        "machine": describe(options.seed),
        "source": source_digest(),
        "targets": plug_in_versions(),
    }
    return Plan(options, candidates, inputs, selections, common, signers)


def _require_device(options: ExportOptions, candidates: Sequence[Candidate]) -> None:
    """Raise InputError for a target whose files do not run on the device that was asked for."""
    names = dict.fromkeys(c.target.name for c in candidates if not c.target.simulated)
    for name in names:
        require_device([name], options.device)


def _precisions_left_out(options: ExportOptions, candidates: list[Candidate]) -> list[str]:
    """A warning for each asked precision that a target lacks; InputError if all lack it."""
    warnings = []
    for precision in options.precisions:
        having = {c.target.name for c in candidates if c.precision == precision}
        lacking = [name for name in options.targets if name not in having]
        if not having:
            raise InputError(
                f"no {precision} file for {', '.join(lacking)}: leave --{precision} out"
            )
        warnings += [f"{name} has no {precision} file: left out" for name in lacking]
    return warnings


def start(plan: Plan, workspace: Path, progress: ProgressBars) -> Context:
    """Prepare the images of a run."""
    import torch

    # Also where torch's answers are there already: results hang on the number of threads.
    torch.set_num_threads(plan.options.thread_count)
    stages = Stages(workspace, plan.common)
    images = prepare_all(plan.selections, stages, progress, plan.options.thread_count)
    machine = plan.common["machine"]
    return Context(plan.options, plan.inputs, machine, images, stages, progress)


def run(context: Context, candidates: Sequence[Candidate]) -> Results:
    """All steps of a run but the bundle; raises GateError where a parity check fails."""
    network = reference_network(context)
    graphs = GraphMaker(context, reference_answers(context, network))
    files = FileMaker(context, graphs, f"cmt_{context.options.variant}")
    sensitivity = Sensitivity(context, graphs)
    asked = [asked_reference(context, network), *(files.asked(c) for c in candidates)]
    reference = evaluate(context, asked)[TORCH]

    if context.options.device is not None:  # before ways around its answers are looked for
        _require_all(_files_parity(files, dict.fromkeys(candidates, NONE), reference), [])
    verdicts = _judged(context, files, sensitivity, candidates, network, reference)
    units = {candidate: verdict.units for candidate, verdict in verdicts.items()}
    graphs.graph(PLAIN)  # in every bundle
    built = {c.name: files.build(c, units[c]) for c in candidates}
    answers = {c.name: files.answers(c, units[c]) for c in candidates}
    int8 = _int8_sources(graphs, candidates)
    warnings = image_warnings(context, int8)
    parity = _parity(graphs, files, units, reference)
    _require_all(parity, warnings)
    rows = {name: graphs.choice(name).row for name in int8}
    no_sensitivity = why_no_sensitivity(context.options, candidates)
    measured = None if no_sensitivity else sensitivity.report_rows(candidates)
    used = {PLAIN: NONE} | {c.graph: units[c] for c in candidates}
    return Results(
        context=context,
        candidates=candidates,
        graphs={name: graphs.file_graph(name, kept) for name, kept in used.items()},
        built=built,
        stem=files.stem,
        fine_tuning=None if graphs.fine_tuning is None else graphs.fine_tuning.report(),
        reference=reference,
        answers=answers,
        timings=files.time(network, units),
        predicted={c.name: files.predicted(c, units[c]) for c in candidates},
        parity=parity,
        calibration=[row for row in rows.values() if row is not None],
        sensitivity=measured,
        no_sensitivity=no_sensitivity,
        fallbacks=[v.entry for v in verdicts.values() if v.entry is not None],
        warnings=[
            *context.inputs.warnings,
            *context.images.warnings(),
            *class_order_warnings(context, reference),
            *(v.warning for v in verdicts.values() if v.warning is not None),
            *warnings,
            *(cpu_warnings(candidates, context.machine) if context.on_cpu else ()),
        ],
    )


def rehearse(context: Context, candidates: Sequence[Candidate]) -> dict[str, Path]:
    """The checked graphs that files would be built from, by candidate name."""
    reference = reference_answers(context, reference_network(context))
    graphs = GraphMaker(context, reference)
    made = {c.name: graphs.file_graph(c.graph) for c in candidates}
    rows = graphs.parity((c.graph, NONE) for c in candidates)
    _require_all(list(rows.values()), image_warnings(context, _int8_sources(graphs, candidates)))
    return made


def _int8_sources(graphs: GraphMaker, candidates: Sequence[Candidate]) -> dict[str, Source]:
    """What each Q/DQ graph of a run is made from, by its name."""
    names = dict.fromkeys(filter(None, (int8_graph(c.graph) for c in candidates)))
    return {name: graphs.source(name) for name in names}


def _judged(
    context: Context,
    files: FileMaker,
    sensitivity: Sensitivity,
    candidates: Sequence[Candidate],
    network: Path,
    reference: FileAnswers,
) -> dict[Candidate, Verdict]:
    """The gate's verdict on each candidate."""

    def on_held_out() -> np.ndarray:
        return reference_answers(context, network, on=HELD_OUT)[0]

    held_out = on_held_out if HELD_OUT in context.images.sets else None
    return {c: judge(context, files, sensitivity, c, reference, held_out) for c in candidates}


def _parity(
    graphs: GraphMaker,
    files: FileMaker,
    units: Mapping[Candidate, Units],
    reference: FileAnswers,
) -> list[Parity]:
    """The rows of all arrows to the files."""
    rows = graphs.parity([(PLAIN, NONE), *((c.graph, kept) for c, kept in units.items())])
    return [*rows.values(), *_files_parity(files, units, reference)]


def _files_parity(
    files: FileMaker, units: Mapping[Candidate, Units], reference: FileAnswers
) -> list[Parity]:
    """The rows of the files that run here."""
    own = (files.parity(c, kept, reference) for c, kept in units.items())
    return [row for row in own if row is not None]


def _require_all(rows: Sequence[Parity], warnings: Sequence[str]) -> None:
    """Raise GateError for a row that failed, with what speaks against the calibration images."""
    try:
        for row in rows:
            require(row)
    except GateError as error:
        raise GateError("; ".join([str(error), *warnings])) from error


def why_no_sensitivity(options: ExportOptions, candidates: Sequence[Candidate]) -> str | None:
    """Why sensitivity is not measured; None where it is."""
    if not options.sensitivity:
        return "not asked for with --sensitivity"
    if all(c.precision != "int8" for c in candidates):
        return "no INT8 file was asked for"
    if options.output == "features":
        return "feature maps have no first answer"
    return None


def class_order_warnings(context: Context, reference: FileAnswers) -> list[str]:
    """A warning where classes are matched by their order alone, and the answers speak against."""
    folders, labels = context.inputs.assumed_order, context.images.validation.labels
    if not folders or labels is None:
        return []
    return order_warning(reference.first[:, 0], reference.classes, labels, folders)


def cpu_warnings(candidates: Sequence[Candidate], cpu: Hardware) -> list[str]:
    """A warning where this CPU's INT8 answers are not those of the CPUs that files are for."""
    files = [c.name for c in candidates if c.precision == "int8" and c.target.not_timed is None]
    if not files or not cuts_int8_sums(cpu):
        return []
    return [
        f"this CPU has no VNNI and cuts off large sums of 8-bit products: {', '.join(files)} "
        "may answer better where it will run; measure there, with cmt-bench"
    ]


def source_digest() -> str:
    """sha256 of this program's own code: another version may make something else of the same."""
    from cmt.files import sources_of

    digest = hashlib.sha256()
    for path in sources_of(cmt):
        digest.update(path.read_bytes())
    return digest.hexdigest()
