"""What the human pages show: the report's figures as tables, charts and facts.

Nothing here is escaped; each page format escapes what it prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from measure import charts
from measure.parity import PRECISIONS
from measure.runners import CUDA_GRAPH, PRECISION, SIMULATED, STREAMS
from measure.verdict import (
    NOT_MEASURED,
    SAME_SPEED,
    Finding,
    Report,
    Row,
    count,
    decimal,
    drop_text,
    findings,
    headline,
    interval,
    is_simulated,
    megabytes,
    milliseconds,
    missing_fields,
    p50,
    p_value,
    percent,
    points,
    printable,
    ranking_images,
    ratio,
    reason,
    resolvable,
    row_name,
    share,
)

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


@dataclass(frozen=True)
class Key:
    """What a letter of a chart stands for, with the figures that the chart shows of it."""

    letter: str
    series: int
    name: str
    text: str


@dataclass(frozen=True)
class Chart:
    """A drawing (SVG) and the same in words; `title` heads it, `caption` explains it."""

    title: str
    caption: str
    svg: str
    key: tuple[Key, ...]


@dataclass(frozen=True)
class Changes:
    """What one file answers otherwise than the baseline."""

    name: str
    text: str
    classes: Table | None
    images: tuple[tuple[str, str], ...]
    """(words, JPEG in base64) of each."""


@dataclass(frozen=True)
class Entry:
    """A row of the report in a chart.

    Attributes:
        name: how the page calls it.
        series: number of its colour and shape; 0 is the baseline's.
    """

    name: str
    row: Row
    series: int


_BADGES = {True: "passed", False: "FAILED", None: "accuracy not checked"}


@dataclass(frozen=True)
class Page:
    """Everything that a page prints, in its order."""

    title: str
    subtitle: str
    passed: bool | None
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


def _columns(first: str, *numeric: str, text: Iterable[str] = ()) -> tuple[Column, ...]:
    return (
        Column(first, numeric=False),
        *(Column(title) for title in numeric),
        *(Column(title, numeric=False) for title in text),
    )


def _marked(row: Row) -> str:
    return row_name(row) + (" *" if is_simulated(row) else "")


def _rows(report: Report) -> list[Row]:
    return [report["baseline"], *report["results"]]


def _summary(report: Report) -> Table:
    baseline = report["baseline"]
    note = " * simulated, see below." if any(map(is_simulated, _rows(report))) else ""
    return Table(
        f"Every file beside the {baseline['target']} baseline. Drop: top-1 lost against the "
        f"baseline in points, with its 95 % interval.{note}",
        _columns("File", "Top-1 %", "Drop, points", "p50 ms", "vs torch", "vs FP32 graph", "Size"),
        tuple(
            (
                _marked(row),
                percent(row["accuracy"] and row["accuracy"]["top1"]),
                "baseline" if row is baseline else drop_text(row["accuracy"]),
                milliseconds(p50(row)),
                "baseline" if row is baseline else ratio(row["speedup_vs_baseline"]),
                ratio(row["speedup_vs_fp32_graph"]),
                megabytes(row["bytes"]),
            )
            for row in _rows(report)
        ),
    )


def _accuracy_table(report: Report) -> Table | None:
    measured = [row for row in _rows(report) if row["accuracy"]]
    if not measured:
        return None
    return Table(
        "Accuracy of the saved files, loaded again. Same answer: images with the baseline's "
        "first choice, right or wrong. McNemar p: small when the difference is no chance. "
        "Resolves: the smallest true drop, in points, that four of five such sets would show.",
        _columns(
            "File", "Top-1 %", "Top-5 %", "Images", "Same answer", "McNemar p", "Resolves",
            text=["Run by"],
        ),
        tuple(
            (
                _marked(row),
                percent(row["accuracy"]["top1"]),
                percent(row["accuracy"]["top5"]),
                count(row["accuracy"]["images"]),
                share(row["accuracy"]["agreement"]),
                p_value(row["accuracy"]["mcnemar_p"]),
                "baseline" if row is report["baseline"] else resolvable(row["accuracy"]),
                row["measured_by"] or NOT_MEASURED,
            )
            for row in measured
        ),
    )  # fmt: skip


# OpenVINO's names are too long for a table.
_SETTINGS = {
    "PERFORMANCE_HINT": "hint",
    STREAMS: "streams",
    PRECISION: "floats as",
}


def _settings_text(row: Row) -> str:
    named = (f"{_SETTINGS.get(name, name)} {value}" for name, value in row["settings"].items())
    return ", ".join(named) or "default"


def _latency_table(report: Report) -> Table | None:
    timed = [row for row in _rows(report) if row["latency_ms"]]
    if not timed:
        return None
    names = ("p50", "p90", "p99", "mean", "std", "first", "load")
    return Table(
        "Milliseconds per run. First: the first run after loading. Load: reading and compiling. "
        "Peak MB: the process's peak memory.",
        _columns("File", *names, "Runs", "Images/s", "Peak MB", text=["Settings"]),
        tuple(
            (
                _marked(row),
                *(milliseconds(row["latency_ms"][name]) for name in names),
                count(row["latency_ms"]["iterations"]),
                decimal(row["throughput_ips"]),
                decimal(row["peak_rss_mb"]),
                _settings_text(row),
            )
            for row in timed
        ),
    )


def machines_table(machines: Iterable[Report]) -> Table:
    """The rows of the report's `machines`; the last column names the machine."""
    names = ("p50", "p90", "p99")
    columns = ("Batch", "Threads", "Streams", *names, "Images/s", "vs FP32")
    return Table(
        "Measured by cmt-bench. Milliseconds per run; one caller for each stream.",
        _columns("File", *columns, text=["Machine"]),
        tuple(
            (
                row_name(row) + _on_the_gpu(row) + _power(row),
                *(str(row["settings"].get(key, 1)) for key in ("batch", "threads", STREAMS)),
                *(milliseconds(row["latency_ms"] and row["latency_ms"][name]) for name in names),
                decimal(row["throughput_ips"]),
                ratio(row["speedup_vs_fp32_graph"]),
                f"{machine['machine']}, {machine['environment']['cpu']}, "
                f"{_day_and_time(machine['measured'])}",
            )
            for machine in machines
            for row in machine["results"]
        ),
    )


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
    rails = row.get("power_mw", {})
    return "".join(f", {rail} {decimal(mw)} mW" for rail, mw in rails.items())


def _missing_table(report: Report) -> Table | None:
    lines: dict[tuple[str, str], list[str]] = {}
    for row in _rows(report):
        for field, plain in missing_fields(row).items():
            lines.setdefault((row_name(row), reason(row, field)), []).append(plain)
    if not lines:
        return None
    return Table(
        "Figures that were not taken, and why. None of them is estimated.",
        _columns("File", text=["Not measured", "Why"]),
        tuple((name, ", ".join(fields), reason) for (name, reason), fields in lines.items()),
    )


def _scientific(value: float) -> str:
    return f"{value:.2e}"


def _tolerance_text(tolerance: dict[str, float]) -> str:
    signs = {"max_abs": "≤", "max_rel": "≤", "cosine": "≥", "top1_agreement": "≥"}
    return ", ".join(f"{name} {signs[name]} {value:g}" for name, value in tolerance.items())


def _parity_table(report: Report) -> Table | None:
    if not report["parity"]:
        return None
    return Table(
        "How far each stage's outputs are from the torch network's on real images.",
        _columns(
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


def _errors(row: Row) -> tuple[str, ...]:
    """Cells of what `quantize.sensitivity.errors` measured."""
    kl = row["kl"]
    return (
        decimal(row["sqnr_db"]),
        NOT_MEASURED if kl is None else _scientific(kl),
        share(row["changed"]),
    )


_ERRORS = ("dB", "KL", "Answers changed")


def _sensitivity(report: Report) -> tuple[Table | None, str]:
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
        _columns("Part", "Layers", *_ERRORS, text=["Worst layer", "Recipe"]),
        tuple(
            (row["unit"], count(row["layers"]), *_errors(row), _worst_layer(row), row["recipe"])
            for row in shown
        ),
    )
    rest = len(entries) - len(shown)
    return table, f"{rest} more are in report.json." if rest else ""


def _worst_layer(row: Row) -> str:
    layers = row.get("by_layer")
    if not layers:
        return NOT_MEASURED if layers is None else "none"
    error = layers[0]["sqnr_db"]
    return f"{layers[0]['layer']}, " + (f"{decimal(error)} dB" if error is not None else "no dB")


_STAGE = ", stage "


def _sensitivity_charts(report: Report) -> Iterable[Chart]:
    """A chart for each recipe: its roles, worst first, and their stages."""
    entries = [row for row in report["sensitivity"] or () if row["sqnr_db"] is not None]
    for recipe in dict.fromkeys(row["recipe"] for row in entries):
        roles: dict[str, charts.Role] = {}
        for row in entries:
            if row["recipe"] == recipe:
                name, _, stage = row["unit"].partition(_STAGE)
                number = int(stage) if stage.isdecimal() else 0
                role = roles.setdefault(name, charts.Role(_letter(len(roles)), [], []))
                role.points.append((number, row["sqnr_db"]))
                layers = [layer["sqnr_db"] for layer in row.get("by_layer", ())]
                role.layers.extend(
                    (number, decibels) for decibels in layers if decibels is not None
                )
        marks = list(roles.values())
        key = tuple(
            Key(mark.letter, 0, name, _stages_text(mark.points))
            for name, mark in zip(roles, marks, strict=True)
        )
        title = f"Sensitivity, {recipe} recipe"
        said = f"{title}. " + "; ".join(f"{k.letter}, {k.name}: {k.text}" for k in key)
        svg = charts.sensitivity(marks, f"sensitivity-{_letter_name(recipe)}", printable(said))
        yield Chart(
            title,
            "The logits' power over that of their error, in decibels, with one role of one stage "
            "alone narrowed; left is worse. Digits: the stage. Dots: single layers in the colour "
            "of their stage; report.json has their figures.",
            svg,
            key,
        )


def _letter_name(text: str) -> str:
    """What may be part of an id."""
    return "".join(char for char in text if char.isascii() and char.isalnum())


def _stages_text(marks: Sequence[tuple[int, float]]) -> str:
    return ", ".join(
        (f"stage {stage} " if stage else "") + f"{decimal(decibels)} dB"
        for stage, decibels in sorted(marks)
    )


def _calibration(report: Report) -> Table | None:
    choices = report.get("calibration")
    if not choices:
        return None
    return Table(
        "How ranges can be chosen and whether weights are fitted, each tried on "
        f"{count(choices[0]['images'])} of {ranking_images(report)}, with the whole recipe "
        "in INT8; the least error was taken. A fine-tuned network keeps the method and the "
        "nearest levels that it learned with.",
        _columns("Method", *_ERRORS, text=["Recipe", "Taken"]),
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


def _fallbacks(report: Report) -> tuple[Table, ...]:
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
            _columns(
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
                    ratio(point["slowdown"]),
                    megabytes(point["bytes"]),
                    "yes" if point["pareto"] else "no",
                    "yes" if point["chosen"] else "no",
                )
                for point in found["points"]
            ),
        )
        for found in report.get("fallbacks", ())
    )


# --- charts and changes ---------------------------------------------------------------------


def _letter(number: int) -> str:
    """A to Z, then AA, AB and so on."""
    head, last = divmod(number, 26)
    return (_letter(head - 1) if head else "") + chr(ord("A") + last)


def _top1_interval(accuracy: Row) -> tuple[float, float] | None:
    """The interval of the drop, laid around the baseline's top-1."""
    if accuracy["drop_pp"] is None or accuracy["drop_ci95"] is None:
        return None
    baseline = accuracy["top1"] + accuracy["drop_pp"]
    low, high = accuracy["drop_ci95"]
    return baseline - high, baseline - low


def _mark(letter: str, entry: Entry) -> charts.Mark:
    row = entry.row
    accuracy, latency = row["accuracy"] or {}, row["latency_ms"] or {}
    interval = accuracy.get("drop_ci95")
    precision = row["precision"]
    return charts.Mark(
        letter=letter,
        series=entry.series,
        dash=PRECISIONS.index(precision) if precision in PRECISIONS else 0,
        p50=latency.get("p50"),
        quantiles=latency.get("quantiles"),
        top1=accuracy.get("top1"),
        top1_interval=_top1_interval(accuracy) if accuracy and entry.series else None,
        drop=accuracy.get("drop_pp"),
        drop_interval=(interval[0], interval[1]) if interval else None,
        bytes=row["bytes"],
    )


def _pareto_text(mark: charts.Mark) -> str:
    parts = [f"{milliseconds(mark.p50)} ms", f"top-1 {percent(mark.top1)} %"]
    if mark.top1_interval:
        low, high = mark.top1_interval
        parts[1] += f" [{percent(low)}, {percent(high)}]"
    return ", ".join([*parts, *([megabytes(mark.bytes)] if mark.bytes else [])])


def _distribution_text(mark: charts.Mark) -> str:
    assert mark.quantiles is not None
    fast, median, slow = (mark.quantiles[charts.QUANTILES.index(q)] for q in (5, 50, 95))
    return f"{milliseconds(fast)}, {milliseconds(median)}, {milliseconds(slow)} ms"


def draw_charts(entries: Sequence[Entry], limit: float | None) -> tuple[Chart, ...]:
    """Those charts for which there are figures.

    Args:
        entries: all rows; each keeps its letter in every chart.
        limit: the largest accepted drop, points.
    """
    named = [(entry, _mark(_letter(i), entry)) for i, entry in enumerate(entries)]

    def chart(
        title: str,
        caption: str,
        chosen: list[tuple[Entry, charts.Mark]],
        draw: Callable[[list[charts.Mark], str], str],
        words: Callable[[charts.Mark], str],
    ) -> Chart:
        key = tuple(
            Key(mark.letter, mark.series % charts.SERIES, entry.name, words(mark))
            for entry, mark in chosen
        )
        said = f"{title}. " + "; ".join(f"{k.letter}, {k.name}: {k.text}" for k in key)
        return Chart(title, caption, draw([mark for _, mark in chosen], printable(said)), key)

    found = []
    both = [pair for pair in named if pair[1].p50 is not None and pair[1].top1 is not None]
    if both:
        accuracies = [entry.row["accuracy"] for entry, _ in both]
        # Rounded: sums of decimal fractions differ in their last bits.
        baselines = {round(a["top1"] + (a["drop_pp"] or 0), 6) for a in accuracies}
        floor = baselines.pop() - limit if limit is not None and len(baselines) == 1 else None
        found.append(
            chart(
                "Top-1 against latency",
                "Up and left is better; the line joins what nothing beats in both. Bars: 95 % "
                "interval of the difference from the baseline. Area: file size. Dashed: the "
                "lowest top-1 accepted, where it is one for all and in reach.",
                both,
                lambda marks, said: charts.pareto(marks, floor, said),
                _pareto_text,
            )
        )
    dropped = [pair for pair in named if pair[1].drop_interval and pair[0].series]
    if dropped:
        found.append(
            chart(
                "Top-1 drop",
                "Points lost against the baseline, with the 95 % interval. Dashed: the limit, "
                "where it is in reach.",
                dropped,
                lambda marks, said: charts.drops(marks, limit, said),
                lambda mark: points(mark.drop) + interval(mark.drop_interval),
            )
        )
    spread = [pair for pair in named if pair[1].quantiles]
    if spread:
        found.append(
            chart(
                "Latency distributions",
                "Share of the timed runs that took no longer; the steeper, the steadier. In "
                "figures: 5 %, half and 95 % of the runs took no longer than this.",
                spread,
                charts.distributions,
                _distribution_text,
            )
        )
    return tuple(found)


def _series(rows: Sequence[Row]) -> list[int]:
    """A number for each target, in order; 0 for the baseline, which comes first."""
    targets = list(dict.fromkeys(row["target"] for row in rows[1:]))
    return [0, *(1 + targets.index(row["target"]) for row in rows[1:])]


def _charts(report: Report) -> tuple[Chart, ...]:
    rows = _rows(report)
    entries = [Entry(_marked(row), row, i) for row, i in zip(rows, _series(rows), strict=True)]
    return draw_charts(entries, report["gates"]["max_drop_pp"])


def _changes(report: Report) -> tuple[Changes, ...]:
    return tuple(
        Changes(
            _marked(row),
            f"{count(changes['lost'])} images lost that {report['baseline']['target']} gets right, "
            f"{count(changes['gained'])} gained.",
            _worst_classes(changes["classes"]),
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
    same = [_marked(row) for row, changes in counted if not changes["lost"] + changes["gained"]]
    return f"No image changed sides in {', '.join(same)}." if same else ""


def _worst_classes(classes: list[Row]) -> Table | None:
    classes = [row for row in classes if row["top1"] < row["baseline_top1"]][:WORST_CLASSES]
    if not classes:
        return None
    return Table(
        "The classes that lost most.",
        _columns("Class", "Images", "Baseline top-1 %", "Top-1 %"),
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


def _by_class(report: Report) -> Table | None:
    """Every class beside every file, the class that lost most in any of them first."""
    files = [
        (_marked(row), {one["name"]: one for one in row["changes"]["classes"]})
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
        _columns("Class", "Images", "Baseline top-1 %", *(name for name, _ in files)),
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


# --- facts ----------------------------------------------------------------------------------


def _used(number: int, skipped: int, available: int | None) -> str:
    text = count(number) + (f" of {count(available)}" if available is not None else "")
    return text + (f"; {count(skipped)} unreadable ones skipped" if skipped else "")


def _images(report: Report) -> tuple[tuple[str, str], ...]:
    images = report["images"]
    facts = [
        (
            "Validation",
            _used(
                images["validation"], images["validation_skipped"], images["validation_available"]
            ),
        ),
        ("Validation source", images["source"]),
        ("Validation sha256, names and bytes", images["validation_sha256"]),
        ("Calibration", _used(images["calibration"], images["calibration_skipped"], None)),
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
        "Speed-ups are ratios of median latencies from the same alternating run. Between "
        f'{1 - SAME_SPEED:.2f} and {1 + SAME_SPEED:.2f} the verdict says "about as fast".',
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
    if any(map(is_simulated, _rows(report))):
        lines.insert(
            1,
            f"* {SIMULATED}: the target's own runtime did not run here, so ONNX Runtime ran the "
            "graph that the target's file is built from. That tells what rounding costs in "
            "accuracy; it tells nothing about speed, and the target's own kernels may round a "
            "little differently.",
        )
    return tuple(lines)


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
        ("Cores available", str(environment["cores"])),
        ("Memory", "unknown" if memory is None else f"{memory:g} GB"),
        (
            "GPU",
            ", ".join(filter(None, (environment["gpu"], environment.get("gpu_power")))) or "none",
        ),
        ("Platform", environment["platform"]),
        ("Python", environment["python"]),
        ("Seed", str(environment["seed"])),
    )


def _day_and_time(created: str) -> str:
    return created.replace("T", " ").replace("+00:00", " UTC").replace("Z", " UTC")


def build_page(report: Report) -> Page:
    """The page of a valid report."""
    sensitivity, sensitivity_note = _sensitivity(report)
    height, width = report["img_size"]
    return Page(
        title=f"CMT-{report['variant']} export report",
        subtitle=f"{report['family']} network, {report['weights']['source']} weights, "
        f"{report['output']}, {height} x {width} pixels; {_day_and_time(report['created'])}",
        passed=report["gates"]["passed"],
        badge=_BADGES[report["gates"]["passed"]],
        headline=headline(report),
        failures=tuple(report["gates"]["failures"]),
        findings=findings(report),
        warnings=tuple(report["warnings"]),
        summary=_summary(report),
        charts=(*_charts(report), *_sensitivity_charts(report)),
        accuracy=_accuracy_table(report),
        latency=_latency_table(report),
        machines=machines_table(report["machines"]) if report.get("machines") else None,
        changes=_changes(report),
        unchanged=_unchanged(report),
        by_class=_by_class(report),
        missing=_missing_table(report),
        parity=_parity_table(report),
        sensitivity=sensitivity,
        sensitivity_note=sensitivity_note,
        calibration=_calibration(report),
        fallbacks=_fallbacks(report),
        images=_images(report),
        method=_method(report),
        environment=_environment(report),
        packages=Table(
            "Installed versions that can change a result.",
            _columns("Package", text=["Version"]),
            tuple(report["environment"]["packages"].items()),
        ),
    )
