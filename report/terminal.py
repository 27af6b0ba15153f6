"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from cmt.printing import printable
from cmt.report import figures
from cmt.report.rows import Machine, Report, Row
from cmt.report.tables import machines_table

if TYPE_CHECKING:
    from rich.table import Table as RichTable


def terminal_table(report: Report) -> RichTable:
    """The comparison in at most 80 columns."""
    baseline, rows = report["baseline"], [report["baseline"], *report["results"]]
    return table_of_text(
        ("target", "prec."),
        ("top-1", "drop [95 %]", "p50 ms", "speed-up", "size"),
        [_terminal_cells(row, is_baseline=row is baseline) for row in rows],
        _terminal_caption(rows),
    )


def machine_table(machine: Machine) -> RichTable:
    """What cmt-bench measured on this machine, an entry of the report's `machines`."""
    source = machines_table([machine], figures.speedup_interval)
    measured = all(row["latency_ms"] for row in machine["results"])
    return table_of_text(
        [column.title for column in source.columns[:-1] if not column.numeric],
        [column.title for column in source.columns[:-1] if column.numeric],
        [cells[:-1] for cells in source.rows],
        None if measured else f"{figures.NOT_MEASURED}: report.json says why",
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


def _terminal_cells(row: Row, is_baseline: bool) -> Iterable[str]:
    accuracy = row["accuracy"]
    return (
        row["target"] + ("*" if figures.is_simulated(row) else ""),
        row["precision"],
        figures.percent(accuracy and accuracy["top1"]),
        "baseline" if is_baseline else figures.drop_text(accuracy),
        figures.milliseconds(figures.p50(row)),
        "baseline" if is_baseline else figures.speedup_interval(row["speedup_vs_baseline"]),
        figures.megabytes(row["bytes"]),
    )


def _resolution(rows: list[Row]) -> Iterator[str]:
    """What drop the images would show, of the file that makes it hardest to see."""
    found = [row["accuracy"] for row in rows[1:] if row["accuracy"]]
    found = [accuracy for accuracy in found if "resolvable_pp" in accuracy]
    if found:
        hardest = max(found, key=lambda accuracy: accuracy["resolvable_pp"])
        images, drop = figures.count(hardest["images"]), figures.resolvable(hardest)
        yield f"{images} images would show a drop of {drop}"


def _terminal_caption(rows: list[Row]) -> str | None:
    notes = []
    if any(map(figures.is_simulated, rows)):
        notes.append("* simulated by ONNX Runtime")
    notes.extend(_resolution(rows))
    if any(map(figures.missing_fields, rows)):
        notes.append(f"{figures.NOT_MEASURED}: not measured, see report.md")
    return "; ".join(notes) or None
