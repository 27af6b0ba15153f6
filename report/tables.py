"""The report's figures as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cmt.quantize.error_row import Errors
from cmt.report.devices import device_rows
from cmt.report.figures import (
    NOT_MEASURED,
    count,
    day_and_time,
    decimal,
    device_text,
    drop_text,
    is_simulated,
    latency,
    megabytes,
    milliseconds,
    missing_fields,
    p50,
    p_value,
    percent,
    points,
    ratio_text,
    reason,
    resolvable,
    row_name,
    share,
    speedup_text,
)
from cmt.report.rows import ClassChange, Machine, PartErrors, Report, Row, Speedup
from cmt.report.verdict import ranking_images
from cmt.targets.settings import CUDA_GRAPH, OFFLINE, PRECISION, SINGLE_STREAM, STREAMS

SENSITIVITY_ROWS = 20


WORST_CLASSES = 3


CLASS_ROWS = 100


@dataclass(frozen=True)
class Column:
    """A table's column; `numeric` ones are set flush right."""

    title: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]


def columns(first: str, *numeric: str, text: Iterable[str] = ()) -> tuple[Column, ...]:
    return (
        Column(first, numeric=False),
        *(Column(title) for title in numeric),
        *(Column(title, numeric=False) for title in text),
    )


def marked_name(row: Row) -> str:
    return row_name(row) + (" *" if is_simulated(row) else "")


def all_rows(report: Report) -> list[Row]:
    return [report["baseline"], *report["results"]]


def summary_table(report: Report) -> Table:
    baseline = report["baseline"]
    note = " * simulated, see below." if any(map(is_simulated, all_rows(report))) else ""
    return Table(
        f"Every file beside the {baseline['target']} baseline. Drop: top-1 lost against the "
        f"baseline in points, with its 95 % interval.{note}",
        columns("File", "Top-1 %", "Drop, points", "p50 ms", "vs torch", "vs FP32 graph", "Size"),
        tuple(
            (
                marked_name(row),
                percent(row["accuracy"] and row["accuracy"]["top1"]),
                "baseline" if row is baseline else drop_text(row["accuracy"]),
                milliseconds(p50(row)),
                "baseline" if row is baseline else speedup_text(row["speedup_vs_baseline"]),
                speedup_text(row["speedup_vs_fp32_graph"]),
                megabytes(row["bytes"]),
            )
            for row in all_rows(report)
        ),
    )


def accuracy_table(report: Report) -> Table | None:
    rows = [(row, row["measured_by"]) for row in all_rows(report)]
    rows += [
        (row, f"{row['measured_by']}{device_text(row)}, {machine}")
        for machine, row in device_rows(report)
    ]
    measured = [(row, found, by) for row, by in rows if (found := row["accuracy"])]
    if not measured:
        return None
    return Table(
        "Accuracy of the saved files, loaded again. Same answer: images with the baseline's "
        "first choice, right or wrong. McNemar p: small when the difference is no chance. "
        "Resolves: the smallest true drop, in points, that four of five such sets would show.",
        columns(
            "File", "Top-1 %", "Top-5 %", "Images", "Same answer", "McNemar p", "Resolves",
            text=["Run by"],
        ),
        tuple(
            (
                marked_name(row),
                percent(found["top1"]),
                percent(found["top5"]),
                count(found["images"]),
                share(found["agreement"]),
                p_value(found["mcnemar_p"]),
                "baseline" if row is report["baseline"] else resolvable(found),
                run_by or NOT_MEASURED,
            )
            for row, found, run_by in measured
        ),
    )  # fmt: skip


# OpenVINO's names are too long for a table.
_SETTINGS = {
    "PERFORMANCE_HINT": "hint",
    STREAMS: "streams",
    PRECISION: "floats as",
}


def settings_text(row: Row) -> str:
    named = (f"{_SETTINGS.get(name, name)} {value}" for name, value in row["settings"].items())
    return ", ".join(named) or "default"


def latency_table(report: Report) -> Table | None:
    timed = [row for row in all_rows(report) if row["latency_ms"]]
    if not timed:
        return None
    names = ("p50", "p90", "p99", "mean", "std", "first", "load")
    return Table(
        "Milliseconds per run. First: the first run after loading. Load: reading and compiling. "
        "Peak MB: the process's peak memory.",
        columns("File", *names, "Runs", "Images/s", "Peak MB", text=["Settings"]),
        tuple(
            (
                marked_name(row),
                *(milliseconds(latency(row, name)) for name in names),
                count(latency(row, "iterations")),
                decimal(row["throughput_ips"]),
                decimal(row["peak_rss_mb"]),
                settings_text(row),
            )
            for row in timed
        ),
    )


def machines_table(
    machines: Iterable[Machine], speedup: Callable[[Speedup | None], str] = speedup_text
) -> Table:
    """The rows of the report's `machines`; the last column names the machine.

    Args:
        speedup: how they are written.
    """
    names = ("p50", "p90", "p99")
    figures = ("Batch", "Threads", "Streams", *names, "Images/s", "vs FP32")
    return Table(
        "Measured by cmt-bench. Milliseconds per run; one caller for each stream.",
        columns("File", *figures, text=["Machine"]),
        tuple(
            (
                row_name(row) + _scenario(row) + device_text(row) + _on_the_gpu(row) + _power(row),
                *(str(row["settings"].get(key, 1)) for key in ("batch", "threads", STREAMS)),
                *(milliseconds(latency(row, name)) for name in names),
                decimal(row["throughput_ips"]),
                speedup(row["speedup_vs_fp32_graph"]),
                f"{machine['machine']}, {machine['environment']['cpu']}, "
                f"{day_and_time(machine['measured'])}",
            )
            for machine in machines
            for row in machine["results"]
        ),
    )


def _scenario(row: Row) -> str:
    """MLPerf's, and the figure that it is judged by."""
    if "scenario" not in row:
        return ""
    figures = {
        SINGLE_STREAM: f"p90 {milliseconds(latency(row, 'p90'))} ms",
        OFFLINE: f"{decimal(row['throughput_ips'])} images/s",
    }
    return f", {row['scenario']}: {figures[row['scenario']]}"


def _on_the_gpu(row: Row) -> str:
    """How an engine was built and run, and its time without the copies to the GPU and back."""
    settings = row["settings"]
    if CUDA_GRAPH not in settings:
        return ""
    titles = {"compatible": "compatible:", "dla": "DLA core", CUDA_GRAPH: "CUDA graph"}
    parts = [f"{title} {settings[key]}" for key, title in titles.items() if key in settings]
    if "gpu_ms" in row:
        parts.append(f"{milliseconds(row['gpu_ms'])} ms on the GPU alone")
    return "".join(f", {part}" for part in parts)


def _power(row: Row) -> str:
    joules = row.get("joules_per_image") or {}
    return "".join(
        f", {meter} {decimal(mw)} mW" + (f" ({joules[meter]:.3g} J per image)" if joules else "")
        for meter, mw in row.get("power_mw", {}).items()
    )


def missing_table(report: Report) -> Table | None:
    lines: dict[tuple[str, str], list[str]] = {}
    for row in all_rows(report):
        for field, plain in missing_fields(row).items():
            lines.setdefault((row_name(row), reason(row, field)), []).append(plain)
    if not lines:
        return None
    return Table(
        "Figures that were not taken, and why. None of them is estimated.",
        columns("File", text=["Not measured", "Why"]),
        tuple((name, ", ".join(fields), reason) for (name, reason), fields in lines.items()),
    )


def _scientific(value: float) -> str:
    return f"{value:.2e}"


def _tolerance_text(tolerance: dict[str, float]) -> str:
    signs = {"max_abs": "≤", "max_rel": "≤", "cosine": "≥", "top1_agreement": "≥"}
    return ", ".join(f"{name} {signs[name]} {value:g}" for name, value in tolerance.items())


def parity_table(report: Report) -> Table | None:
    if not report["parity"]:
        return None
    return Table(
        "How far each stage's outputs are from the torch network's on real images.",
        columns(
            "Stage", "Images", "Max abs", "Max rel", "Cosine", "Same answer",
            text=["Tolerance", "Result"],
        ),
        tuple(
            (
                row["stage"],
                count(row["images"]),
                _scientific(row["max_abs"]),
                _scientific(row["max_rel"]),
                f"{row['cosine']:.6f}",
                share(row["top1_agreement"]),
                _tolerance_text(row["tolerance"]),
                "passed" if row["passed"] else "FAILED",
            )
            for row in report["parity"]
        ),
    )  # fmt: skip


def _errors(row: Errors) -> tuple[str, ...]:
    """Cells of what `quantize.sensitivity.errors` measured."""
    kl = row["kl"]
    return (
        decimal(row["sqnr_db"]),
        NOT_MEASURED if kl is None else _scientific(kl),
        share(row["changed"]),
    )


_ERRORS = ("dB", "KL", "Answers changed")


def sensitivity_table(report: Report) -> tuple[Table | None, str]:
    entries = report["sensitivity"]
    if entries is None:
        return None, f"Not measured: {report['sensitivity_reason'].strip().rstrip('.')}."
    if not entries:
        return None, "No part of the network was found to be sensitive."
    shown = entries[:SENSITIVITY_ROWS]
    table = Table(
        "What each part of the network loses when it alone is narrowed, on "
        f"{count(shown[0]['images'])} of {ranking_images(report)}; the worst first. dB: "
        "power of the logits over that of their error. KL: of the softmax. "
        "Worst layer: of the part, narrowed alone; the others are in report.json.",
        columns("Part", "Layers", *_ERRORS, text=["Worst layer", "Recipe"]),
        tuple(
            (row["unit"], count(row["layers"]), *_errors(row), _worst_layer(row), row["recipe"])
            for row in shown
        ),
    )
    rest = len(entries) - len(shown)
    return table, f"{rest} more are in report.json." if rest else ""


def _worst_layer(row: PartErrors) -> str:
    layers = row.get("by_layer")
    if not layers:
        return NOT_MEASURED if layers is None else "none"
    error = layers[0]["sqnr_db"]
    return f"{layers[0]['layer']}, " + (f"{decimal(error)} dB" if error is not None else "no dB")


def calibration_table(report: Report) -> Table | None:
    choices = report.get("calibration")
    if not choices:
        return None
    return Table(
        "How ranges can be chosen and whether weights are fitted, each tried on "
        f"{count(choices[0]['images'])} of {ranking_images(report)}, with the whole recipe "
        "in INT8; the least error was taken. A fine-tuned network keeps the method and the "
        "nearest levels that it learned with.",
        columns("Method", *_ERRORS, text=["Recipe", "Taken"]),
        tuple(
            (
                row["method"],
                *_errors(row),
                choice["recipe"],
                "yes" if row["method"] == choice["chosen"] else "no",
            )
            for choice in choices
            for row in choice["methods"]
        ),
    )


def fallback_tables(report: Report) -> tuple[Table, ...]:
    """What was tried for each file that exceeded the accepted drop."""
    return tuple(
        Table(
            f"{row_name(found)}: tried for the accepted drop of "
            f"{percent(report['gates']['max_drop_pp'])} points; "
            + ("met" if found["met"] else "out of time" if found["out_of_time"] else "not met")
            + f". Chosen on {count(found['ranking_images'])} of {ranking_images(report)}; "
            "what has a drop was judged on all validation images, and the least drop was taken. "
            f"Cost of a part: {found['cost']}. Of {count(found['layers'])} layers that can be "
            "narrowed. Size: of the graph that an engine would be built from, or of the file.",
            columns(
                "Left in float",
                "Layers",
                "Answers changed",
                "Drop, points",
                "Time",
                "Size",
                text=["Not beaten", "Taken"],
            ),
            tuple(
                (
                    "; ".join(point["float"]) or "nothing",
                    count(point["float_layers"]),
                    share(point["changed"]),
                    points(point["drop_pp"]),
                    ratio_text(point["slowdown"], point["slowdown_ci95"]),
                    megabytes(point["bytes"]),
                    "yes" if point["pareto"] else "no",
                    "yes" if point["chosen"] else "no",
                )
                for point in found["points"]
            ),
        )
        for found in report.get("fallbacks", ())
    )


def worst_classes_table(classes: list[ClassChange]) -> Table | None:
    classes = [row for row in classes if row["top1"] < row["baseline_top1"]][:WORST_CLASSES]
    if not classes:
        return None
    return Table(
        "The classes that lost most.",
        columns("Class", "Images", "Baseline top-1 %", "Top-1 %"),
        tuple(
            (
                row["name"],
                count(row["images"]),
                percent(row["baseline_top1"]),
                percent(row["top1"]),
            )
            for row in classes
        ),
    )


def class_table(report: Report) -> Table | None:
    """Every class beside every file, the class that lost most in any of them first."""
    files = [
        (marked_name(row), {one["name"]: one for one in row["changes"]["classes"]})
        for row in report["results"]
        if "changes" in row
    ]
    # Early reports have each file's worst classes alone.
    if not files or not files[0][1] or any(c.keys() != files[0][1].keys() for _, c in files):
        return None
    before = files[0][1]
    change = {
        name: [classes[name]["top1"] - one["baseline_top1"] for _, classes in files]
        for name, one in before.items()
    }
    shown = sorted(before.values(), key=lambda one: min(change[one["name"]]))[:CLASS_ROWS]
    rest = len(before) - len(shown)
    return Table(
        f"Top-1 of each class in {report['baseline']['target']}, and what it gained or lost in "
        "each file, in points." + (f" {rest} more classes are in report.json." if rest else ""),
        columns("Class", "Images", "Baseline top-1 %", *(name for name, _ in files)),
        tuple(
            (
                one["name"],
                count(one["images"]),
                percent(one["baseline_top1"]),
                *(points(value) for value in change[one["name"]]),
            )
            for one in shown
        ),
    )
