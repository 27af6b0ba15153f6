"""What INT8 and FP16 cost CMT in accuracy: other quantisers and ours on the same images.

    python benchmarks/accuracy.py --work FOLDER --out accuracy.json
    python benchmarks/accuracy.py --name imagenette --weights W --calib-data TRAIN --val-data VAL
    python benchmarks/accuracy.py --markdown accuracy.json
    python benchmarks/accuracy.py --check accuracy.json

Without options, CMT-Ti with the demo weights on all 10,000 bundled images. Every quantiser is given
the same float graph (ours also the network) and the same calibration images; every file is loaded
again and run on the same validation images. Files and answers are kept in the work folder, and
results are written file by file, so that the same command goes on where it was stopped.
`--seconds` adds latencies, taken alternately once all files are there.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from benchmarks.accuracy_files import (
    OURS,
    PEERS,
    PLAIN,
    Contender,
    ImageSet,
    Row,
)
from benchmarks.cpu import now, write_results
from benchmarks.result_tables import NOT_MEASURED, Table, to_markdown, to_rich
from cmt.export.options import ExportOptions
from cmt.measure.progress import ProgressBars
from cmt.measure.statistics import compare
from cmt.report.figures import drop_text, milliseconds, p_value, percent, share
from cmt.targets.base import SIMULATED, Array
from cmt.targets.machine import describe as describe_machine
from cmt.targets.registry import TARGETS
from cmt.variants import VARIANTS

REVIEWED = Path(__file__).with_name("reviewed.json")
BESIDE = {
    "openvino": f"{OURS}OpenVINO INT8",
    "onnxruntime": f"{OURS}OpenVINO INT8",
    SIMULATED: f"{OURS}TensorRT INT8",
}
"""Which of ours one would run in place of a peer's file, by the peer's runtime."""


def run(
    name: str,
    options: ExportOptions,
    work: Path,
    out: Path | None,
    *,
    modelopt: Path | None,
    control_seconds: float,
    seconds: float,
) -> Row:
    """Judge every file of a set; returns the results, those of earlier sets in `out` included.

    Args:
        name: of the set, unique in `out`.
        out: written after every file; None keeps the results to the caller.
    """
    results: Row = {"sets": {}}
    if out is not None and out.exists():
        results = json.loads(out.read_text(encoding="utf-8"))
    with ProgressBars(out is not None) as progress:
        images = ImageSet(options, work.absolute() / name, progress)
        reference, labels = images.reference(), images.validation.labels
        assert labels is not None
        rows: list[Row] = [{"name": "torch FP32", **judge(reference, reference, labels)}]
        result = {
            "variant": options.variant,
            "validation": len(labels),
            "validation_sha256": images.validation.sha256,
            "calibration": len(images.calibration),
            "calibration_sha256": images.calibration.sha256,
            "threads": images.threads,
            "environment": describe_machine(options.seed),
            "rows": rows,
        }
        results["sets"][name] = result
        contenders = []
        ours: dict[str, Array] = {}
        for contender in images.contenders(modelopt, control_seconds):
            contenders.append(contender)
            rows.append(_judged(contender, images, reference, ours))
            result["measured"] = now()
            if out is not None:
                write_results(results, out)
        if seconds:
            times = images.times(contenders, seconds)
            for row in rows:
                row["latency"] = times.get(row["name"])
            if out is not None:
                write_results(results, out)
    return results


def _judged(
    contender: Contender, images: ImageSet, reference: Array, ours: dict[str, Array]
) -> Row:
    """The row of a file; `ours` takes the answers that peers are compared with."""
    row: Row = {"name": contender.name, "runtime": contender.runtime, "behind_ours": None}
    if contender.version is not None:
        row["version"] = contender.version
    if contender.reason is not None:
        return {**row, "accuracy": None, "logit_error": None, "reason": contender.reason}
    logits, labels = images.answers(contender), images.validation.labels
    row |= judge(logits, reference, labels)
    row["behind_ours"] = behind_ours(contender, logits, ours, labels)
    if contender.name in BESIDE.values():
        ours[contender.name] = logits
    return row


def reviewed() -> Row:
    """The figures that later versions are held to, as `regressions` takes them."""
    return json.loads(REVIEWED.read_text(encoding="utf-8"))


def regressions(results: Row, reference: Row) -> list[str]:
    """A line for each file that is worse than the reviewed figures allow, or is missing.

    Args:
        reference: set -> file -> figure of a row (`logit_error`, `drop_pp`) -> [reviewed value,
            how much more is accepted]. Sets that were not measured are left out.
    """
    lines = []
    for name in reference.keys() & results["sets"].keys():
        rows = {row["name"]: row for row in results["sets"][name]["rows"]}
        for file, figures in reference[name].items():
            row = rows.get(file)
            if row is None or row["accuracy"] is None:
                lines.append(f"{name}: {file} is missing")
                continue
            measured = {"logit_error": row["logit_error"], "drop_pp": row["accuracy"]["drop_pp"]}
            lines += [
                f"{name}: {file} has {figure} {measured[figure]:.4g}, reviewed {value:.4g}"
                for figure, (value, more) in figures.items()
                if measured[figure] > value + more
            ]
    return sorted(lines)


def judge(logits: Array, reference: Array, labels: Any) -> Row:
    """The accuracy beside torch's, and the root mean square error relative to torch's logits."""
    error = np.sqrt(np.square(logits - reference).mean() / np.square(reference).mean())
    accuracy = asdict(compare(logits, reference, labels))
    return {"accuracy": accuracy, "logit_error": float(error)}


def behind_ours(peer: Contender, logits: Array, ours: dict[str, Array], labels: Any) -> Row | None:
    """A peer's accuracy beside that of our INT8 file for its kind of machine, image by image.

    Args:
        ours: logits by the file's name.

    Returns None for what is no peer's file, and where ours was not judged.
    """
    beside = BESIDE[peer.runtime]
    if not peer.stage.startswith(PEERS) or beside not in ours:
        return None
    return asdict(compare(logits, ours[beside], labels))


def make_table(name: str, results: Row) -> Table:
    """One set as text."""
    result = results["sets"][name]
    machine, packages = result["environment"], result["environment"]["packages"]
    versions = [f"{p} {packages[p]}" for p in ("openvino", "nncf", "onnxruntime", "torch")]
    versions += [f"ModelOpt {row['version']}" for row in result["rows"] if "version" in row]
    reasons = [f"{row['name']}: {row['reason']}." for row in result["rows"] if row.get("reason")]
    return Table(
        f"CMT-{result['variant'].capitalize()}, {name}",
        (
            "",
            "top-1, %",
            "drop, points [95 %]",
            "McNemar p",
            "behind ours, points [95 %]",
            "same answer",
            "error of the logits",
            "p50, ms",
            "speed",
        ),
        [_cells(row) for row in result["rows"]],
        " ".join(
            [
                f"{result['validation']:,} validation and {result['calibration']} calibration "
                "images. Behind ours: top-1 of our INT8 file for the same kind of machine minus "
                f"this one's, image by image. Speed: as a multiple of {PLAIN}'s in the same "
                "rounds. *: run by ONNX Runtime in place of the GPU it is meant for.",
                *reasons,
                f"{machine['cpu']} ({', '.join(machine['cpu_flags'])}), {result['threads']} "
                f"threads, {', '.join(versions)}, {result['measured'][:10]}.",
            ]
        ),
    )


def _cells(row: Row) -> tuple[str, ...]:
    accuracy, latency = row["accuracy"], row.get("latency")
    name = row["name"] + (" *" if row.get("runtime") == SIMULATED else "")
    if accuracy is None:
        return (name, *[NOT_MEASURED] * 8)
    speed, behind = latency and latency["speedup"], row.get("behind_ours")
    return (
        name,
        percent(accuracy["top1"]),
        drop_text(accuracy) if "runtime" in row else "baseline",
        p_value(accuracy["mcnemar_p"]),
        drop_text(behind) if behind else NOT_MEASURED,
        share(accuracy["agreement"]),
        percent(100 * row["logit_error"]) + " %",
        milliseconds(latency["p50"]) if latency else NOT_MEASURED,
        f"{speed['median']:.2f} [{speed['q1']:.2f}, {speed['q3']:.2f}]" if speed else NOT_MEASURED,
    )


FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.option("--name", default="bundled", help="What the results call this set of images.")
@click.option("--variant", default="ti", type=click.Choice(list(VARIANTS)), help="CMT variant.")
@click.option("--weights", help="Checkpoint file.  [default: demo for ti]")
@click.option("--calib-data", type=FOLDER, help="Calibration images.  [default: bundled]")
@click.option("--calib-count", default=512, help="How many of them.")
@click.option("--val-data", type=FOLDER, help="Validation images, class/name.jpg.")
@click.option("--val-count", type=int, help="How many.  [default: all]")
@click.option(
    "--modelopt", type=FILE, help="A Python with ModelOpt.  [default: made in the work folder]"
)
@click.option(
    "--control-seconds", default=1800.0, help="How long NNCF's accuracy control may take."
)
@click.option("--seconds", default=0.0, help="Spent on timing each file; 0 leaves times out.")
@click.option("--threads", type=int, help="CPU threads of every runtime.  [default: all]")
@click.option("--work", default="benchmark_files", type=FOLDER, help="Cache.")
@click.option("--out", default="accuracy.json", type=FILE, help="Results, file by file.")
@click.option("--markdown", type=FILE, help="Only print the tables of these results as Markdown.")
@click.option("--check", type=FILE, help="Only compare these results with the reviewed ones.")
def main(
    *,
    markdown: Path | None,
    check: Path | None,
    name: str,
    work: Path,
    out: Path,
    modelopt: Path | None,
    control_seconds: float,
    seconds: float,
    **options: Any,
) -> None:
    """Judge other quantisers and ours on the same images."""
    if markdown is not None:
        results = json.loads(markdown.read_text(encoding="utf-8"))
        tables = [to_markdown(make_table(name, results)) for name in results["sets"]]
        click.echo("\n\n".join(tables))
        return
    if check is not None:
        worse = regressions(json.loads(check.read_text(encoding="utf-8")), reviewed())
        click.echo("\n".join(worse) or "as good as reviewed")
        sys.exit(1 if worse else 0)
    targets = tuple(t for t in ("openvino", "tensorrt") if not TARGETS[t].missing())
    results = run(
        name,
        ExportOptions(targets=targets, **options),
        work,
        out,
        modelopt=modelopt,
        control_seconds=control_seconds,
        seconds=seconds,
    )
    Console(width=160, highlight=False).print(to_rich(make_table(name, results)))


if __name__ == "__main__":
    main()
