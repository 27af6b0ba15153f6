"""A comparison for people: the terminal's table, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cmt.errors import InputError
from cmt.report.comparison import files_by_machine, machine_names, to_json
from cmt.report.document import write_pages
from cmt.report.drawn import Chart, Entry, draw_charts
from cmt.report.figures import (
    NOT_MEASURED,
    decimal,
    drop_text,
    is_simulated,
    latency,
    megabytes,
    milliseconds,
    missing_fields,
    p50,
    percent,
    run_time,
    speedup_text,
)
from cmt.report.render import render
from cmt.report.rows import ComparedRow, Comparison
from cmt.report.tables import Column, Table
from cmt.report.terminal import table_of_text
from cmt.report.verdict import busy, fastest, over_limit
from cmt.targets.settings import callers

if TYPE_CHECKING:
    from rich.table import Table as RichTable

FILES = ("comparison.json", "comparison.md", "comparison.html")


@dataclass(frozen=True)
class Page:
    """Everything that a page of a comparison prints, in its order."""

    title: str
    subtitle: str
    headlines: tuple[str, ...]
    requirements: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    charts: tuple[Chart, ...]
    summary: Table
    missing: Table | None
    reports: Table
    method: tuple[str, ...]


def build_page(comparison: Comparison) -> Page:
    """The page of a comparison."""
    rows = comparison["rows"]
    machines = machine_names(comparison)
    limits = {report["max_drop_pp"] for report in comparison["reports"]}
    entries = [
        # A baseline keeps its own colour, wherever it was measured.
        Entry(
            f"{row['name']}, {row['machine']}",
            row,
            0 if row["artefact"] is None else 1 + machines.index(row["machine"]),
        )
        for row in rows
    ]
    return Page(
        title="CMT comparison",
        subtitle=f"{len(rows)} rows of {len(machines)} machines",
        headlines=tuple(_headlines(comparison)),
        requirements=tuple(_requirement_lines(comparison)),
        warnings=tuple(comparison["warnings"]),
        charts=draw_charts(entries, limits.pop() if len(limits) == 1 else None),
        summary=_summary(rows),
        missing=_missing(rows),
        reports=_reports(comparison),
        method=_method(rows),
    )


def _headlines(comparison: Comparison) -> Iterator[str]:
    """For each machine, variant, batch and number of streams the fastest file within its limit."""
    reports = comparison["reports"]
    for machine, rows in files_by_machine(comparison).items():
        for variant in dict.fromkeys(row["variant"] for row in rows):
            groups: dict[tuple[int | None, int], list[ComparedRow]] = {}
            for row in rows:
                settings, limit = row["settings"], reports[row["report"]]["max_drop_pp"]
                if row["variant"] == variant and not over_limit(row, limit):
                    group = (settings.get("batch"), callers(settings))
                    groups.setdefault(group, []).append(row)
            found = [best for group in groups.values() if (best := fastest(group, None))]
            if not found:
                yield f"{machine}: no {variant} file that keeps the limit was timed."
            several = len({callers(row["settings"]) for row in found}) > 1
            found.sort(key=lambda row: p50(row) or 0)
            yield from (f"{machine}: {_advice(row, several)}" for row in found)


def _advice(row: ComparedRow, several_streams: bool) -> str:
    """What to ship; where numbers of streams differ, with what each of them is for."""
    rate = ""
    if several_streams:
        number = callers(row["settings"])
        who = "one caller" if number == 1 else f"{number} callers at once"
        rate = f" for {who}, {decimal(row['throughput_ips'])} images/s"
    cost = f"top-1 drop {drop_text(row['accuracy'])}" if row["accuracy"] else "no accuracy"
    if busy(row):
        return (
            "was busy while files were timed, so that the fastest is open: "
            f"{row['name']} took {run_time(row)}{rate}, {cost}."
        )
    speedup = row["speedup_vs_baseline"]
    faster = "" if speedup is None else f", {speedup_text(speedup)} as fast as torch"
    return f"ship {row['name']}, {run_time(row)}{rate}{faster}, {cost}."


def _requirement_lines(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """(tone, words) of each."""
    required = comparison["requirements"]
    if required is not None:
        yield from (("bad", f"FAILED: {failure}") for failure in required["failures"])
        clauses = ", ".join(required["clauses"])
        yield from (("good", f"{name} keeps {clauses}") for name in required["kept_by"])


def _summary(rows: Sequence[ComparedRow]) -> Table:
    speeds = ("p50 ms", "p99 ms", "vs torch", "vs FP32")
    return Table(
        "Every file on every machine. Speed-ups are ratios within one machine's alternating run; "
        "latencies of different machines and runs were not taken alternately.",
        (
            Column("File", False),
            Column("Machine", False),
            *map(Column, ("Top-1 %", "Drop, points", *speeds, "Size")),
            Column("Speed of", False),
            Column("Accuracy from", False),
        ),
        tuple(
            (
                row["name"],
                row["machine"],
                percent(row["accuracy"] and row["accuracy"]["top1"]),
                "baseline" if row["artefact"] is None else drop_text(row["accuracy"]),
                milliseconds(p50(row)),
                milliseconds(latency(row, "p99")),
                speedup_text(row["speedup_vs_baseline"]),
                speedup_text(row["speedup_vs_fp32_graph"]),
                megabytes(row["bytes"]),
                _speed_of(row),
                row["accuracy_from"] or NOT_MEASURED,
            )
            for row in rows
        ),
    )


def _speed_of(row: ComparedRow) -> str:
    """How many images at a time, and how many inferences."""
    streams = callers(row["settings"])
    at_once = f" x {streams}" if streams > 1 else ""
    return f"batch {row['settings'].get('batch', NOT_MEASURED)}{at_once}"


def terminal_table(comparison: Comparison) -> RichTable:
    """The comparison in at most 80 columns."""
    rows = comparison["rows"]
    notes = []
    if any(map(is_simulated, rows)):
        notes.append("* accuracy simulated by ONNX Runtime")
    if any(row["accuracy"] is None or row["latency_ms"] is None for row in rows):
        notes.append(f"{NOT_MEASURED}: not measured, --json says why")
    return table_of_text(
        ("machine", "file", "speed of"),
        ("drop [95 %]", "p50 ms", "size"),
        [
            (
                row["machine"],
                row["name"],
                _speed_of(row),
                "baseline" if row["artefact"] is None else drop_text(row["accuracy"]),
                milliseconds(p50(row)),
                megabytes(row["bytes"]),
            )
            for row in rows
        ],
        "; ".join(notes) or None,
    )


def _missing(rows: Sequence[ComparedRow]) -> Table | None:
    lines = [
        (row["name"], row["machine"], field, row["reasons"][field])
        for row in rows
        for field in ("accuracy", "latency_ms")
        if field in missing_fields(row)
    ]
    if not lines:
        return None
    columns = tuple(Column(title, False) for title in ("File", "Machine", "Not measured", "Why"))
    plain = {"accuracy": "accuracy", "latency_ms": "latency"}
    return Table(
        "Figures that were not taken, and why.",
        columns,
        tuple((name, machine, plain[field], why) for name, machine, field, why in lines),
    )


def _reports(comparison: Comparison) -> Table:
    titles = ("Report", "Machine", "Created", "Weights", "Validation images", "sha256")
    return Table(
        "Where the rows come from.",
        tuple(Column(title, False) for title in titles),
        tuple(
            (
                report["path"],
                report["machine"],
                report["created"],
                f"{report['weights']['source']} {(report['weights']['sha256'] or '')[:12]}",
                f"{report['images']['validation']:,} of {report['images']['source']}",
                (report["images"]["validation_sha256"] or "none")[:12],
            )
            for report in comparison["reports"]
        ),
    )


def _method(rows: Sequence[ComparedRow]) -> tuple[str, ...]:
    lines = [
        "Each report says how its figures were taken; nothing is measured or estimated here.",
        "cmt-bench measures speed. The accuracy beside it is that of the same file on the machine "
        "that the last column names.",
    ]
    if any(map(is_simulated, rows)):
        lines.append(
            "* accuracy simulated by ONNX Runtime: the graph that the file is built from was run."
        )
    return tuple(lines)


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write comparison.json, comparison.md and comparison.html into a folder.

    Raises:
        InputError: they cannot be written there, or the comparison breaks its schema.
    """
    from filelock import Timeout

    data = to_json(comparison) + "\n"
    page = build_page(comparison)
    texts = (
        data,
        render("comparison.md.j2", page),
        render("comparison.html.j2", page),
    )
    try:
        write_pages(dict(zip(FILES, texts, strict=True)), folder)
    except Timeout as error:
        raise InputError(f"another cmt-report is writing to {folder}: try again") from error
    except OSError as error:
        raise InputError(
            f"cannot write to {folder} ({error.strerror}): choose another --out"
        ) from error
