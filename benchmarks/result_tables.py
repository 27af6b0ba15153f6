"""The results of `cpu.py` as tables, for the terminal and for the documentation."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table as RichTable

from benchmarks.contenders import (
    NNCF_DEFAULT,
    NNCF_DEFAULT_BF16,
    NNCF_TRANSFORMER,
    NNCF_TRANSFORMER_BF16,
    OURS_FP32,
    OURS_INT8,
    PLAIN,
    PLAIN_BF16,
)
from cmt.measure.statistics import paired_ratio

Row = dict[str, Any]
Point = tuple[str, int]
"""Mode and batch."""

NOT_MEASURED = "-"
_QUARTILES = "In the same rounds: median [quartiles]."


@dataclass(frozen=True)
class Table:
    """Text cells; the first column is left-aligned, the others are figures."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    caption: str = ""


def make_tables(results: Row) -> list[Table]:
    """All tables of some results, variant by variant."""
    environment = results["environment"]
    packages = environment["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("openvino", "nncf", "onnxruntime"))
    machine = (
        f"{environment['cpu']} ({', '.join(environment['cpu_flags'])}), "
        f"{results['threads']} threads, {versions}, torch {packages['torch']}"
    )
    tables = []
    for variant in dict.fromkeys(group["variant"] for group in results["groups"]):
        groups = [group for group in results["groups"] if group["variant"] == variant]
        tables += [_times(groups, machine), _bars(groups), _shares(groups)]
        networks = [group for group in groups if group["kind"] == "networks"]
        tables += _networks(networks)
        tables += [_beside(networks)] if networks else []
    return [table for table in tables if len(table.header) > 1]


def _times(groups: list[Row], machine: str) -> Table:
    """Every way to run one variant, against the plain OpenVINO FP32 graph."""
    groups = [group for group in groups if group["kind"] in ("runtimes", "graphs")]
    points = _points(groups)
    days = sorted({group["measured"][:10] for group in groups})
    names = dict.fromkeys(row["name"] for group in groups for row in group["contenders"])
    rows = [
        (name, *(_cell(_find(groups, point, name), point) for point in points)) for name in names
    ]
    first = groups[0]["contenders"][0]
    size = "x".join(map(str, first["shape"][2:]))
    reasons = {
        f"{row['name']}: {row['reason']}."
        for group in groups
        for row in group["contenders"]
        if row["reason"]
    }
    return Table(
        f"{first['network']} at {size}, {_gmacs(first):.2f} G multiply-adds per image",
        ("", *map(_point_name, points)),
        rows,
        " ".join(
            [
                "Milliseconds per run (latency) or images per second (throughput), then the speed "
                f"as a multiple of {PLAIN}'s in the same rounds: median ± half the interquartile "
                "range.",
                *sorted(reasons),
                f"{machine}, {' to '.join(dict.fromkeys([days[0], days[-1]]))}.",
            ]
        ),
    )


def _bars(groups: list[Row]) -> Table:
    """What our files gain over what they are meant to beat; no columns where none were timed."""
    network = _network(groups)
    groups = [group for group in groups if group["kind"] == "graphs"]
    points = _points(groups)
    rows = []
    for ours, title, others in (
        (OURS_INT8, "plain FP32", (PLAIN,)),
        (OURS_INT8, "better NNCF", (NNCF_DEFAULT, NNCF_TRANSFORMER)),
        (OURS_INT8, "better NNCF, BF16", (NNCF_DEFAULT_BF16, NNCF_TRANSFORMER_BF16)),
        (OURS_INT8, "plain BF16", (PLAIN_BF16,)),
        (OURS_FP32, "plain FP32", (PLAIN,)),
    ):
        cells = (_speedup(_rounds(groups, point, ours), ours, others) for point in points)
        rows.append((f"{ours} / {title}", *cells))
    title = f"{network}: speed ratios"
    return Table(title, ("", *map(_point_name, points)), rows, _QUARTILES)


def _beside(groups: list[Row]) -> Table:
    """How much faster CMT is than every other network, as torch writes both and in INT8."""
    network, points = _network(groups), _points(groups)
    others = {
        row["name"]: PLAIN if row["precision"] == "FP32" else OURS_INT8
        for group in groups
        for row in group["contenders"]
        if row["network"] != network
    }
    rows = []
    for other, own in others.items():
        cells = (_speedup(_rounds(groups, point, other), own, (other,)) for point in points)
        rows.append((other, *cells))
    return Table(
        f"{network}: speed as a multiple of other networks'",
        ("", *map(_point_name, points)),
        rows,
        f"{PLAIN} to FP32, {OURS_INT8} to INT8 (NNCF). {_QUARTILES}",
    )


def _rounds(groups: list[Row], point: Point, name: str) -> dict[str, list[float]]:
    """Milliseconds of every round of the files that were measured in the group of `name`."""
    for group in groups:
        rows = group["contenders"]
        if (group["mode"], group["batch"]) == point and any(row["name"] == name for row in rows):
            return {row["name"]: row["rounds_ms"] for row in rows if row["rounds_ms"] is not None}
    return {}


def _speedup(rounds: dict[str, list[float]], own: str, others: Sequence[str]) -> str:
    """Speed as a multiple of the fastest of the others."""
    theirs = [rounds[name] for name in others if name in rounds]
    if own not in rounds or not theirs:
        return NOT_MEASURED
    return _quartiles(paired_ratio(rounds[own], min(theirs, key=statistics.median)))


def _shares(groups: list[Row]) -> Table:
    """How far every INT8 file is from the multiply rate of a large INT8 matrix product."""
    points = _points(groups)
    names = dict.fromkeys(
        row["name"] for group in groups for row in group["contenders"] if row["precision"] == "INT8"
    )
    rows = [(name, *(_share(_find(groups, point, name)) for point in points)) for name in names]
    peaks = [
        next(g["int8_peak"] for g in _graphs_first(groups) if (g["mode"], g["batch"]) == point)
        for point in points
    ]
    rates = [f"{peak['macs_per_second'] / 1e9:.0f}  100 %" for peak in peaks]
    rows.append((peaks[0]["what"], *rates))
    caption = (
        "G multiply-adds per second, and the share of the rate of a large INT8 matrix product in "
        "the same rounds."
    )
    title = f"{_network(groups)} and others: INT8 multiply rate"
    return Table(title, ("", *map(_point_name, points)), rows, caption)


def _networks(groups: list[Row]) -> list[Table]:
    """CMT beside networks of about its accuracy, a table for each mode and batch."""
    tables = []
    for point in _points(groups):
        here = [group for group in groups if (group["mode"], group["batch"]) == point]
        names = dict.fromkeys(row["network"] for group in here for row in group["contenders"])
        rows = []
        for name in names:
            own = [row for group in here for row in group["contenders"] if row["network"] == name]
            fp32 = next(row for row in own if row["precision"] == "FP32")
            int8 = next(row for row in own if row["precision"] == "INT8")
            rows.append(
                (
                    name,
                    str(fp32["shape"][-1]),
                    f"{fp32['top1']:.1f}",
                    f"{_gmacs(fp32):.2f}",
                    _cell(fp32, point),
                    _cell(int8, point),
                )
            )
        network = _network(here)
        tables.append(
            Table(
                f"{network} and other networks, {_point_name(point)}",
                ("", "input", "top-1, %", "G multiply-adds", "FP32", "INT8"),
                rows,
                f"{network}: plain FP32 and our INT8. Top-1 as published. Multiples are of "
                f"{network}'s plain FP32 in the same rounds; compare these, for the machine drifts "
                "between groups.",
            )
        )
    return tables


def _network(groups: list[Row]) -> str:
    """The CMT whose variant the groups are of."""
    return groups[0]["contenders"][0]["network"]


def _points(groups: list[Row]) -> list[Point]:
    return sorted({(group["mode"], group["batch"]) for group in groups})


def _point_name(point: Point) -> str:
    mode, batch = point
    return f"{mode}, batch {batch}"


def _find(groups: list[Row], point: Point, name: str) -> Row | None:
    """The row of that name; of several, that of the group of OpenVINO graphs."""
    found = [
        row
        for group in _graphs_first(groups)
        if (group["mode"], group["batch"]) == point
        for row in group["contenders"]
        if row["name"] == name
    ]
    return found[0] if found else None


def _graphs_first(groups: list[Row]) -> list[Row]:
    return sorted(groups, key=lambda group: group["kind"] != "graphs")


def _cell(row: Row | None, point: Point) -> str:
    if row is None or row["ms"] is None:
        return NOT_MEASURED
    figure = row["ms"] if point[0] == "latency" else row["images_per_second"]
    return f"{_three_digits(figure)}  {_ratio(row['speedup'])}"


def _share(row: Row | None) -> str:
    if row is None or row["ms"] is None:
        return NOT_MEASURED
    rate = row["macs"] / row["ms"] / 1e6
    return f"{_three_digits(rate)}  {100 * row['share_of_int8_peak']:.0f} %"


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f}±{(ratio['q3'] - ratio['q1']) / 2:.2f}"


def _quartiles(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} [{ratio['q1']:.2f}, {ratio['q3']:.2f}]"


def _gmacs(row: Row) -> float:
    """Multiply-adds of one image in 10^9."""
    return row["macs"] / row["shape"][0] / 1e9


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def to_rich(table: Table) -> RichTable:
    """For a terminal of 100 columns."""
    drawn = RichTable(
        title=table.title,
        caption=table.caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for i, name in enumerate(table.header):
        drawn.add_column(name, justify="right" if i else "left")
    for row in table.rows:
        drawn.add_row(*row)
    return drawn


def to_markdown(table: Table) -> str:
    """For the documentation."""
    lines = [table.header, ("---", *("---:" for _ in table.header[1:])), *table.rows]
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    caption = f"\n\n{table.caption}" if table.caption else ""
    return f"### {table.title}\n\n{body}{caption}"
