"""report.json, checked against its schema, and the same figures for people."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmt import strict_json
from cmt.errors import InputError
from measure import pages, verdict
from measure.bundle import parse_versioned, strict_validator
from measure.replacing import replacing
from measure.verdict import printable

if TYPE_CHECKING:
    from rich.table import Table as RichTable

HERE = Path(__file__).parent
SCHEMAS = HERE / "schema"
TEMPLATES = HERE / "templates"
VERSION = 1
DAMAGED = "{file} is no report.json ({error}): copy it again"
REPORT_FILES = ("report.json", "report.md", "report.html")

# Punctuation with a meaning in Markdown, anywhere or between words, and at the text's start.
_MARKUP = re.compile(r"[\\`*\[\]|~#$]|(?<![^\W_])_|_(?![^\W_])")
_LINE_START = re.compile(r"^([-+=]+|\d+[.)])(?=\s|$)")


def read_report(file: Path) -> dict[str, Any]:
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


def parse_report(content: bytes, file: object = "report.json") -> dict[str, Any]:
    """`read_report` of a file's content."""
    report = parse_versioned(content, file, VERSION, DAMAGED)
    try:
        validate(report)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    return report


def validate(report: dict[str, Any]) -> None:
    """Raise InputError, naming the place, unless the report keeps every promise of its format.

    Beyond the schema: no NaN or infinity, a reason for every null measurement, gates that
    agree with their failures, intervals in order, and no speed from a simulated run.
    """
    try:
        plain = json.loads(json.dumps(report))
    except (TypeError, ValueError) as error:
        raise InputError(f"the report cannot be written as JSON: {error}") from error
    problem = next(_problems(plain), None)
    if problem:
        raise InputError(f"the report is unusable: {problem}")


def _problems(report: dict[str, Any]) -> Iterator[str]:
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

    files = {path.name: json.loads(path.read_text("utf-8")) for path in SCHEMAS.glob("*.json")}
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


def _gate_problems(report: dict[str, Any]) -> Iterator[str]:
    gates = report["gates"]
    checked = any(row["accuracy"] is not None for row in report["results"])
    if gates["passed"] != (not gates["failures"] if checked or gates["failures"] else None):
        yield "gates.passed contradicts gates.failures"
    failed = [row["stage"] for row in report["parity"] if not row["passed"]]
    if failed and gates["passed"]:
        yield f"gates.passed, but parity failed at '{failed[0]}'"


def _row_problems(place: str, row: dict[str, Any]) -> Iterator[str]:
    for field in verdict.missing_fields(row):
        if not row["reasons"].get(field, "").strip():
            yield f"{place}.{field} is null and {place}.reasons does not say why"
    bounds = row["accuracy"] and row["accuracy"]["drop_ci95"]
    if bounds and bounds[0] > bounds[1]:
        yield f"{place}.accuracy.drop_ci95 runs from high to low"
    if verdict.is_simulated(row) and row["latency_ms"] is not None:
        yield f"{place} is simulated: its latency is not the target's"


def write_report(report: dict[str, Any], folder: Path) -> None:
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
    write_pages(files, folder)


def write_pages(files: dict[str, str], folder: Path) -> None:
    """Write texts by file name into a folder, made where it is missing; all or none of them."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as new:
        for name, text in files.items():
            (new / name).write_text(text, encoding="utf-8", newline="\n")


def escape_markdown(value: Any) -> str:
    """Text that Markdown shows as it is, also within a table."""
    text = printable(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _MARKUP.sub(lambda match: "\\" + match[0], text)
    return _LINE_START.sub(lambda match: match[0][:-1] + "\\" + match[0][-1], text)


def _printable_html(value: Any) -> Any:
    # What a macro returns is escaped already and keeps its lines.
    return value if hasattr(value, "__html__") else printable(value)


def render(template: str, page: Any) -> str:
    """A page in the format of the template's name: HTML, or GitHub-flavoured Markdown."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    is_html = ".html" in template
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=is_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_printable_html if is_html else escape_markdown,
    )
    return environment.get_template(template).render(page=page)


def render_markdown(report: dict[str, Any]) -> str:
    """The report as GitHub-flavoured Markdown."""
    return render("report.md.j2", pages.build_page(report))


def render_html(report: dict[str, Any]) -> str:
    """The report as one self-contained HTML file: no scripts, nothing loaded from elsewhere."""
    return render("report.html.j2", pages.build_page(report))


def terminal_table(report: dict[str, Any]) -> RichTable:
    """The comparison in at most 80 columns."""
    baseline, rows = report["baseline"], [report["baseline"], *report["results"]]
    return table_of_text(
        ("target", "prec."),
        ("top-1", "drop [95 %]", "p50 ms", "speed-up", "size"),
        [_terminal_cells(row, is_baseline=row is baseline) for row in rows],
        _terminal_caption(rows),
    )


def machine_table(machine: dict[str, Any]) -> RichTable:
    """What cmt-bench measured on this machine, an entry of the report's `machines`."""
    source = pages.machines_table([machine])
    measured = all(row["latency_ms"] for row in machine["results"])
    return table_of_text(
        [column.title for column in source.columns[:-1] if not column.numeric],
        [column.title for column in source.columns[:-1] if column.numeric],
        [cells[:-1] for cells in source.rows],
        None if measured else f"{verdict.NOT_MEASURED}: report.json says why",
    )


def table_of_text(
    names: Sequence[str],
    figures: Sequence[str],
    rows: Iterable[Iterable[str]],
    caption: str | None,
) -> RichTable:
    """A table for the terminal: columns of names, which may wrap, then columns of figures."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        caption=caption,
        caption_justify="left",
    )
    for title in names:
        table.add_column(title, overflow="fold")
    for title in figures:
        table.add_column(title, justify="right", no_wrap=True)
    for cells in rows:
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _terminal_cells(row: dict[str, Any], is_baseline: bool) -> Iterable[str]:
    accuracy, latency = row["accuracy"], row["latency_ms"]
    return (
        row["target"] + ("*" if verdict.is_simulated(row) else ""),
        row["precision"],
        verdict.percent(accuracy and accuracy["top1"]),
        "baseline" if is_baseline else verdict.drop_text(accuracy),
        verdict.milliseconds(latency["p50"]) if latency else verdict.NOT_MEASURED,
        verdict.ratio(row["speedup_vs_baseline"]),
        verdict.megabytes(row["bytes"]),
    )


def _resolution(rows: list[dict[str, Any]]) -> Iterator[str]:
    """What drop the images would show, of the file that makes it hardest to see."""
    found = [row["accuracy"] for row in rows[1:] if row["accuracy"]]
    found = [accuracy for accuracy in found if "resolvable_pp" in accuracy]
    if found:
        hardest = max(found, key=lambda accuracy: accuracy["resolvable_pp"])
        images, drop = verdict.count(hardest["images"]), verdict.resolvable(hardest)
        yield f"{images} images would show a drop of {drop}"


def _terminal_caption(rows: list[dict[str, Any]]) -> str | None:
    notes = []
    if any(map(verdict.is_simulated, rows)):
        notes.append("* simulated by ONNX Runtime")
    notes.extend(_resolution(rows))
    if any(map(verdict.missing_fields, rows)):
        notes.append(f"{verdict.NOT_MEASURED}: not measured, see report.md")
    return "; ".join(notes) or None
