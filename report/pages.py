"""What the human pages show: the report's figures as tables, charts and facts.

Nothing here is escaped; each page format escapes what it prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cmt.report.devices import device_findings
from cmt.report.drawn import Chart, report_charts, sensitivity_charts
from cmt.report.figures import count, day_and_time
from cmt.report.rows import Report
from cmt.report.tables import (
    Table,
    accuracy_table,
    all_rows,
    calibration_table,
    class_table,
    columns,
    fallback_tables,
    latency_table,
    machines_table,
    marked_name,
    missing_table,
    parity_table,
    sensitivity_table,
    summary_table,
    worst_classes_table,
)
from cmt.report.verdict import (
    Finding,
    findings,
    headline,
    is_simulated,
    unconfirmed,
)
from cmt.targets.base import SIMULATED
from cmt.targets.machine import Environment


@dataclass(frozen=True)
class Changes:
    """What one file answers otherwise than the baseline."""

    name: str
    text: str
    classes: Table | None
    images: tuple[tuple[str, str], ...]
    """(words, JPEG in base64) of each."""


_BADGES = {True: "passed", False: "FAILED", None: "accuracy not checked"}


@dataclass(frozen=True)
class Page:
    """Everything that a page prints, in its order."""

    title: str
    subtitle: str
    passed: bool | None
    """None where accuracy was not measured, or the images do not confirm it."""
    badge: str
    headline: str
    failures: tuple[str, ...]
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]
    summary: Table
    charts: tuple[Chart, ...]
    accuracy: Table | None
    latency: Table | None
    machines: Table | None
    changes: tuple[Changes, ...]
    unchanged: str
    by_class: Table | None
    missing: Table | None
    parity: Table | None
    sensitivity: Table | None
    sensitivity_note: str
    calibration: Table | None
    fallbacks: tuple[Table, ...]
    images: tuple[tuple[str, str], ...]
    method: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    packages: Table


# --- tables and charts ----------------------------------------------------------------------


# --- charts and changes ---------------------------------------------------------------------


def _changes(report: Report) -> tuple[Changes, ...]:
    return tuple(
        Changes(
            marked_name(row),
            f"{count(changes['lost'])} images lost that {report['baseline']['target']} gets right, "
            f"{count(changes['gained'])} gained.",
            worst_classes_table(changes["classes"]),
            tuple(
                (
                    f"{image['key']}, labelled {image['label']}: "
                    f"{report['baseline']['target']} says "
                    f"{image['baseline']}, this file {image['answer']}",
                    image["thumbnail"],
                )
                for image in changes["images"]
            ),
        )
        for row in report["results"]
        if (changes := row.get("changes")) and changes["lost"] + changes["gained"]
    )


def _unchanged(report: Report) -> str:
    """The files that no image tells from the baseline, in words."""
    counted = [(row, row["changes"]) for row in report["results"] if "changes" in row]
    same = [marked_name(row) for row, changes in counted if not changes["lost"] + changes["gained"]]
    return f"No image changed sides in {', '.join(same)}." if same else ""


# --- facts ----------------------------------------------------------------------------------


def _used(images: Mapping[str, Any], name: str) -> str:
    """How many of a set's images were used, and what was not."""
    available, skipped = images.get(f"{name}_available"), images[f"{name}_skipped"]
    left_out = images.get(f"{name}_left_out", 0)
    text = count(images[name]) + (f" of {count(available)}" if available is not None else "")
    text += f"; {count(skipped)} unreadable ones skipped" if skipped else ""
    return text + (f"; {count(left_out)} other file(s) left out" if left_out else "")


def _images(report: Report) -> tuple[tuple[str, str], ...]:
    images = report["images"]
    facts = [
        ("Validation", _used(images, "validation")),
        ("Validation source", images["source"]),
        ("Validation sha256, names and bytes", images["validation_sha256"]),
        ("Calibration", _used(images, "calibration")),
        ("Calibration source", images["calibration_source"]),
        ("Calibration sha256, names and bytes", images["calibration_sha256"]),
    ]
    if tuned := report.get("fine_tuning"):
        epochs = f"{count(tuned['images'])}, {tuned['epochs']} epoch(s)"
        facts += [
            ("Fine-tuning of INT8", epochs),
            ("Fine-tuning source", tuned["source"]),
            ("Fine-tuning sha256, names and bytes", tuned["sha256"]),
        ]
    return tuple((name, "none" if value is None else value) for name, value in facts)


def _method(report: Report) -> tuple[str, ...]:
    lines = [
        "Every figure is of a saved file, loaded again, never of an object in memory; of an engine "
        "that no GPU here can run, it is the saved graph that the engine was built from.",
        "Latency: each file runs in a worker process of its own, one at a time. Short bursts of "
        "all files alternate (A B C C B A ...), so that a drifting machine is fair to all. "
        "Warm-up runs are left out; the first run and the loading time stand on their own. "
        "Images/s is the batch over the mean latency.",
        "Speed-ups are medians of the ratios of median latencies, round by round. Their interval "
        "covers the median in at least 95 % of cases (sign test) and another start of the process "
        "(2 % on either side). Rounds in which a file was kept from CPUs for more than a tenth of "
        "the time are counted and left out; where too few are left, no speed-up is given.",
        "Drop: the baseline's top-1 minus the file's, paired image by image; positive is worse. "
        "The 95 % interval is Agresti and Min's adjusted Wald interval (Statistics in Medicine "
        "24, 2005), the p exact two-sided McNemar. An interval that holds zero means that these "
        "images cannot tell the two apart. The smallest drop that they would show (power 80 %, "
        "two-sided 5 %) is Connor's (Biometrics 43, 1987), with the share of images that changed "
        "sides as observed.",
        "Rounding on this page: accuracy and drops to 0.01, latencies to 0.01 ms (0.001 ms "
        "below 10 ms), ratios to 0.01, sizes to 0.1 MB (1 MB = 1,000,000 bytes). report.json "
        "has every digit.",
    ]
    if any(map(is_simulated, all_rows(report))):
        lines.insert(
            1,
            f"* {SIMULATED}: the target's own runtime did not run here, so ONNX Runtime ran the "
            "graph that the target's file is built from. That tells what rounding costs in "
            "accuracy; it tells nothing about speed, and the target's own kernels may round a "
            "little differently.",
        )
    return tuple(lines)


def _cores(environment: Environment) -> str:
    quota = environment.get("cpu_quota")
    limit = "" if quota is None else f", of a quota of {quota:g} CPUs' time"
    return f"{environment['cores']}{limit}"


def _environment(report: Report) -> tuple[tuple[str, str], ...]:
    environment, weights = report["environment"], report["weights"]
    memory = environment["memory_gb"]
    return (
        ("Command", report["command"]),
        ("Weights", weights["source"]),
        ("Weights sha256", weights["sha256"] or "none"),
        ("Parameters", f"{weights['parameters'] / 1e6:.2f} million"),
        ("Multiply-accumulates", f"{weights['macs'] / 1e9:.3f} billion per image"),
        ("CPU", environment["cpu"]),
        ("CPU flags", ", ".join(environment["cpu_flags"]) or "none of interest"),
        ("Cores available", _cores(environment)),
        ("Memory", "unknown" if memory is None else f"{memory:g} GB"),
        (
            "GPU",
            ", ".join(filter(None, (environment["gpu"], environment.get("gpu_power")))) or "none",
        ),
        ("Platform", environment["platform"]),
        ("Python", environment["python"] or "none"),
        ("Seed", str(environment["seed"])),
    )


def build_page(report: Report) -> Page:
    """The page of a valid report."""
    sensitivity, sensitivity_note = sensitivity_table(report)
    height, width = report["img_size"]
    gate = None if unconfirmed(report) else report["gates"]["passed"]
    return Page(
        title=f"CMT-{report['variant']} export report",
        subtitle=f"{report['family']} network, {report['weights']['source']} weights, "
        f"{report['output']}, {height} x {width} pixels; {day_and_time(report['created'])}",
        passed=gate,
        badge="not confirmed" if unconfirmed(report) else _BADGES[gate],
        headline=headline(report),
        failures=tuple(report["gates"]["failures"]),
        findings=(*findings(report), *device_findings(report)),
        warnings=tuple(report["warnings"]),
        summary=summary_table(report),
        charts=(*report_charts(report), *sensitivity_charts(report)),
        accuracy=accuracy_table(report),
        latency=latency_table(report),
        machines=machines_table(report["machines"]) if report.get("machines") else None,
        changes=_changes(report),
        unchanged=_unchanged(report),
        by_class=class_table(report),
        missing=missing_table(report),
        parity=parity_table(report),
        sensitivity=sensitivity,
        sensitivity_note=sensitivity_note,
        calibration=calibration_table(report),
        fallbacks=fallback_tables(report),
        images=_images(report),
        method=_method(report),
        environment=_environment(report),
        packages=Table(
            "Installed versions that can change a result.",
            columns("Package", text=["Version"]),
            tuple(report["environment"]["packages"].items()),
        ),
    )
