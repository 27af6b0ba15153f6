"""report.json, checked against its schema, and the same figures for people."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from cmt import strict_json
from cmt.bundle.manifest import SCHEMA as MANIFEST_SCHEMA
from cmt.bundle.manifest import parse_versioned, strict_validator
from cmt.bundle.reader import OpenBundle
from cmt.bundle.replacing import newest, replacing
from cmt.bundle.writer import describe_file, write_manifest
from cmt.errors import InputError
from cmt.report import figures, pages
from cmt.report.render import render
from cmt.report.rows import Report, Row
from cmt.report.upgrade import VERSION, upgrade

SCHEMAS = Path(__file__).parent / "schema"
DAMAGED = "{file} is no report.json ({error}): copy it again"
REPORT_FILES = ("report.json", "report.md", "report.html")


def read_report(file: Path) -> Report:
    """A report.json; raises InputError, naming the file, for one that `validate` refuses."""
    try:
        content = strict_json.read(file)
    except ValueError as error:
        raise InputError(DAMAGED.format(file=file, error=error)) from error
    except OSError as error:
        raise InputError(
            f"cannot read {file} ({error.strerror}): give a bundle or its report.json"
        ) from error
    return parse_report(content, file)


def parse_report(content: bytes, file: object = "report.json") -> Report:
    """`read_report` of a file's content."""
    report = upgrade(parse_versioned(content, file, VERSION, DAMAGED))
    try:
        validate(report)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    return report


def validate(report: Report) -> None:
    """Raise InputError, naming the place, unless the report keeps every promise of its format.

    Beyond the schema: no NaN or infinity, a reason for every null measurement, gates that
    agree with their failures, intervals in order that hold their figure, and no speed from a
    simulated run.
    """
    try:
        plain = json.loads(json.dumps(report))
    except (TypeError, ValueError) as error:
        raise InputError(f"the report cannot be written as JSON: {error}") from error
    problem = next(_problems(plain), None)
    if problem:
        raise InputError(f"the report is unusable: {problem}")


def _problems(report: Report) -> Iterator[str]:
    yield from _not_finite(report, "report")
    yield from schema_problems("report", report)
    yield from _gate_problems(report)
    rows = [("baseline", report["baseline"])]
    rows += [(f"results[{i}]", row) for i, row in enumerate(report["results"])]
    for i, machine in enumerate(report.get("machines", [])):
        rows += [(f"machines[{i}].results[{j}]", r) for j, r in enumerate(machine["results"])]
    for place, row in rows:
        yield from _row_problems(place, row)


def _not_finite(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{place} is {value}"
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _not_finite(item, f"{place}.{name}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _not_finite(item, f"{place}[{i}]")


@cache
def _validator(name: str) -> Any:
    from referencing import Registry, Resource

    paths = [MANIFEST_SCHEMA, *SCHEMAS.glob("*.json")]
    files = {path.name: json.loads(path.read_text("utf-8")) for path in paths}
    registry: Any = Registry().with_resources(
        (file, Resource.from_contents(schema)) for file, schema in files.items()
    )
    return strict_validator(files[f"{name}.schema.json"], registry)


def schema_problems(name: str, value: Any) -> Iterator[str]:
    """What of a report or comparison, by `name`, breaks its JSON Schema most, with the place."""
    from jsonschema.exceptions import best_match

    error = best_match(_validator(name).iter_errors(value))
    if error is not None:
        yield f"{error.json_path.replace('$', name, 1)}: {error.message}"


def _gate_problems(report: Report) -> Iterator[str]:
    gates = report["gates"]
    checked = any(row["accuracy"] is not None for row in report["results"])
    if gates["passed"] != (not gates["failures"] if checked or gates["failures"] else None):
        yield "gates.passed contradicts gates.failures"
    if "unconfirmed" in gates and gates["max_drop_pp"] is not None:
        limit = gates["max_drop_pp"]
        measured = [row["accuracy"] for row in report["results"] if row["accuracy"] is not None]
        beyond = [a for a in measured if a["drop_ci95"] and a["drop_ci95"][1] > limit]
        if len(gates["unconfirmed"]) + len(gates["failures"]) < len(beyond):
            yield "gates.unconfirmed and gates.failures leave out a file beyond the limit"
    failed = [row["stage"] for row in report["parity"] if not row["passed"]]
    if failed and gates["passed"]:
        yield f"gates.passed, but parity failed at '{failed[0]}'"


def _row_problems(place: str, row: Row) -> Iterator[str]:
    for field in figures.missing_fields(row):
        if not row["reasons"].get(field, "").strip():
            yield f"{place}.{field} is null and {place}.reasons does not say why"
    bounds = row["accuracy"] and row["accuracy"]["drop_ci95"]
    if bounds and bounds[0] > bounds[1]:
        yield f"{place}.accuracy.drop_ci95 runs from high to low"
    for speedup in (row["speedup_vs_baseline"], row["speedup_vs_fp32_graph"]):
        if speedup and not speedup["ci95"][0] <= speedup["ratio"] <= speedup["ci95"][1]:
            yield f"{place}: a speed-up of {speedup['ratio']} is not within its interval"
    if figures.is_simulated(row) and row["latency_ms"] is not None:
        yield f"{place} is simulated: its latency is not the target's"


def write_report(report: Report, folder: Path) -> None:
    """Write report.json, report.md and report.html; nothing is written unless all three can be.

    Raises:
        InputError: `validate` refuses the report.
    """
    validate(report)
    files = {
        "report.json": strict_json.dump(report),
        "report.md": render_markdown(report),
        "report.html": render_html(report),
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write_texts(files, folder)


def write_pages(files: dict[str, str], folder: Path) -> None:
    """Write texts by file name into a folder, made where it is missing; all or none of them."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder, lambda: files) as new:
        _write_texts(files, new)


def _write_texts(files: dict[str, str], folder: Path) -> None:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def render_markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown."""
    return render("report.md.j2", pages.build_page(report))


def render_html(report: Report) -> str:
    """The report as one self-contained HTML file: no scripts, nothing loaded from elsewhere."""
    return render("report.html.j2", pages.build_page(report))


def report_of(bundle: OpenBundle) -> Report:
    """The report.json of a bundle; raises InputError where it breaks its schema."""
    return read_report(newest(bundle.path, REPORT_FILES[0]))


def put_report(bundle: OpenBundle, report: Report, folder: Path) -> None:
    """Write a report, and a bundle's manifest with its hashes, into a folder."""
    write_report(report, folder)
    entries = [describe_file(folder, folder / file) for file in REPORT_FILES]
    write_manifest(folder, {**bundle.manifest, "reports": entries})
