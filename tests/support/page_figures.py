"""Every number that a page prints, held against the JSON file beside it.

A page is read as its reader sees it: cells of tables by heading, column and row; all other texts,
those for people who do not see the charts included, one by one. What is wrong comes back as words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from typing import Any

from markdown_it import MarkdownIt

Report = dict[str, Any]
Row = dict[str, Any]

NUMBER = re.compile(
    r"(?<![\w.])([<>] )?([+-]?\d(?:[\d,]*\d)?(?:\.\d+)?(?:e[+-]\d+)?)(?: ?(ms|MB|%|x))?(?!\w|\.\d)"
)
# Parts of fixed sentences, and names, which no measurement changes.
PHRASES = re.compile(r"\b95 %(?= interval| of the runs)|\b5 %(?=, half and)")
NAMES = re.compile(r"[Tt]op-[15]( %)?|FP32|FP16|INT8|p50|p90|p99|sha256")
# What this section says holds for every report.
FIXED = "How each number was taken"
RESOLVED = "would show"
"""Says that a number is the smallest drop that the images resolve."""
TEXTS = ("p", "li", "dd", "dt", "caption", "figcaption", "h1", "h2", "h3", "th", "td")


@dataclass(frozen=True)
class Piece:
    """A text of a page; `row` counts a table's body rows, `column` is the title of a cell's."""

    heading: str
    text: str
    column: str | None = None
    row: int = 0


class _Reader(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.pieces: list[Piece] = []
        self._open: list[list[str]] = []
        self._headings = ["", ""]
        self._columns: list[str] = []
        self._row = self._cell = -1
        self._drawn = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "svg":
            self._drawn = True
            label = dict(attrs)["aria-label"] or ""
            self.pieces += [Piece(self._heading, text) for text in label.split("; ")]
        elif tag == "table":
            self._columns, self._row = [], -2
        elif tag == "tr":
            self._row, self._cell = self._row + 1, -1
        elif tag in TEXTS and not self._drawn:
            self._open.append([])
            self._cell += tag in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._open and not self._drawn:
            self._open[-1].append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "svg":
            self._drawn = False
        elif tag in TEXTS and self._open and not self._drawn:
            text = " ".join(" ".join(self._open.pop()).split())
            if tag in ("h2", "h3"):
                self._headings = [text, ""] if tag == "h2" else [self._headings[0], text]
            in_table = tag in ("td", "th")
            if in_table and self._row < 0:
                self._columns.append(text)
                in_table = False
            column = self._columns[self._cell] if in_table else None
            self.pieces.append(Piece(self._heading, text, column, max(self._row, 0)))

    @property
    def _heading(self) -> str:
        return " / ".join(filter(None, self._headings))


def html_pieces(page: str) -> list[Piece]:
    """The texts of a page of HTML."""
    return _Reader(page.split("</style>")[-1]).pieces


def markdown_pieces(page: str) -> list[Piece]:
    """The texts of a page of Markdown."""
    return _Reader(MarkdownIt("commonmark").enable("table").render(page)).pieces


# --- what a number may be -------------------------------------------------------------------


def rounds_to(value: float, sign: str, number: str) -> bool:
    """`number` is `value`, rounded to the digits that `number` has."""
    digits, _, exponent = number.replace(",", "").partition("e")
    shown = float(number.replace(",", ""))
    if sign:
        return (value < shown == 1e-4) if sign == "< " else (value > shown == 99.99)
    unit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    return abs(value - shown) <= unit * (0.5 + 1e-6)


def rounded_up(value: float) -> float:
    """To two decimals: less than a drop that can be resolved is not promised."""
    return math.ceil(100 * value) / 100


def at(row: Any, path: str) -> Any:
    """`at(row, "latency_ms.p50")`; None where any part of the way is missing."""
    for key in path.split("."):
        row = row[int(key)] if isinstance(row, list) else (row or {}).get(key)
    return row


def decimals(number: str) -> int:
    return len(number.partition("e")[0].partition(".")[2])


def ratio_of(field: str) -> tuple[str, ...]:
    """A speed-up and its interval."""
    return (f"{field}.ratio", f"{field}.ci95.0", f"{field}.ci95.1")


SPEED_UPS = ("speedup_vs_baseline", "speedup_vs_fp32_graph")
MS = -1  # two decimals, three below 10 ms, as the page promises
COLUMNS: dict[str, tuple[tuple[str, ...], float, int]] = {
    "Top-1 %": (("accuracy.top1",), 1, 2),
    "Top-5 %": (("accuracy.top5",), 1, 2),
    "Images": (("accuracy.images",), 1, 0),
    "Same answer": (("accuracy.agreement",), 100, 2),
    "McNemar p": (("accuracy.mcnemar_p",), 1, 4),
    "Drop, points": (
        ("accuracy.drop_pp", "accuracy.drop_ci95.0", "accuracy.drop_ci95.1"), 1, 2,
    ),
    **{f"{name} ms": ((f"latency_ms.{name}",), 1, MS) for name in ("p50", "p99")},
    **{
        name: ((f"latency_ms.{name}",), 1, MS)
        for name in ("p50", "p90", "p99", "mean", "std", "first", "load")
    },
    "Runs": (("latency_ms.iterations",), 1, 0),
    "Images/s": (("throughput_ips",), 1, 1),
    "Peak MB": (("peak_rss_mb",), 1, 1),
    "vs torch": (ratio_of("speedup_vs_baseline"), 1, 2),
    "vs FP32 graph": (ratio_of("speedup_vs_fp32_graph"), 1, 2),
    "vs FP32": (ratio_of("speedup_vs_fp32_graph"), 1, 2),
    "Size": (("bytes",), 1e-6, 1),
    "Batch": (("settings.batch",), 1, 0),
    "Threads": (("settings.threads",), 1, 0),
}  # fmt: skip
PARITY = {
    "Images": (("images",), 1, 0),
    "Max abs": (("max_abs",), 1, 2),
    "Max rel": (("max_rel",), 1, 2),
    "Cosine": (("cosine",), 1, 6),
    "Same answer": (("top1_agreement",), 100, 2),
}
ERRORS = {
    "Layers": (("layers",), 1, 0),
    "dB": (("sqnr_db",), 1, 1),
    "KL": (("kl",), 1, 2),
    "Answers changed": (("changed",), 100, 2),
}
TRIED = {
    "Layers": (("float_layers",), 1, 0),
    "Answers changed": (("changed",), 100, 2),
    "Drop, points": (("drop_pp",), 1, 2),
    "Time": (("slowdown", "slowdown_ci95.0", "slowdown_ci95.1"), 1, 2),
    "Size": (("bytes",), 1e-6, 1),
}
CLASSES = {
    "Images": (("images",), 1, 0),
    "Baseline top-1 %": (("baseline_top1",), 1, 2),
    "Top-1 %": (("top1",), 1, 2),
}


def _cell_problem(
    text: str, row: Row, paths: tuple[str, ...], scale: float, places: int
) -> str | None:
    values = [at(row, path) for path in paths]
    numbers = NUMBER.findall(text)
    if values[0] is None or text == "baseline":
        return None if text in ("n/a", "baseline") else f"{text} for what was not measured"
    if len(numbers) != len(values):
        return f"{text} for {values}"
    for value, (sign, number, _) in zip(values, numbers, strict=True):
        wanted = places if places != MS else 2 if float(number.replace(",", "")) >= 10 else 3
        if not rounds_to(value * scale, sign, number) or decimals(number) != wanted:
            return f"{text} for {values}"
    return None


# --- what a sentence may say ----------------------------------------------------------------


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, str):
        yield value


def row_figures(row: Row) -> dict[str, list[float]]:
    """What a sentence about a row may say, by unit; without one, any of these."""
    accuracy, latency = row["accuracy"] or {}, row["latency_ms"] or {}
    drop, bounds = accuracy.get("drop_pp"), accuracy.get("drop_ci95") or []
    plain = [drop, *bounds, *_numbers([at(row, f"{field}.ci95") for field in SPEED_UPS])]
    plain += [accuracy.get("images"), row["settings"].get("batch")]
    if drop is not None:
        # The interval of the drop, laid around the baseline's top-1.
        plain += [accuracy["top1"] + drop - bound for bound in bounds]
    if "changes" in row:
        plain += [row["changes"]["lost"], row["changes"]["gained"]]
    plain += _numbers([row.get("layers", {}), row.get("otherwise", {})])
    quantiles, predicted = latency.get("quantiles"), row.get("predicted", {})
    plain += [predicted.get("launches")]
    times = [
        predicted.get("ms"),
        latency.get("p50"),
        *((quantiles[i] for i in (1, 10, 19)) if quantiles else ()),
    ]
    figures = {
        "ms": times,
        "x": [at(row, f"{field}.ratio") for field in SPEED_UPS],
        "MB": [size and size / 1e6 for size in (row["bytes"], predicted.get("moved"))],
        "%": [accuracy.get("top1")],
        "": plain,
        RESOLVED: [rounded_up(accuracy["resolvable_pp"])] if "resolvable_pp" in accuracy else [],
    }
    return {unit: [v for v in values if v is not None] for unit, values in figures.items()}


def _sentence_problem(text: str, strings: list[str], rows: Sequence[Row], more: list[float]) -> str:
    figures = [row_figures(row) for row in rows]
    for settings in (row["settings"] for row in rows):  # whole, for numbers so small are many
        text = text.replace(
            "batch {batch}, {threads} thread(s)".format(**{"batch": 0, "threads": 0, **settings}),
            "·",
        )
    rest = PHRASES.sub("", text)  # first: a word of them may be a text of the file
    for string in strings:
        if string in rest:
            rest = re.sub(rf"(?<!\w){re.escape(string)}(?!\w)", "·", rest)
    if RESOLVED in text:
        more = [*more, *(value for figure in figures for value in figure[RESOLVED])]
    wrong = []
    wrong += ["thread(s)"] * ("thread(s)" in rest)
    rest = NAMES.sub("", rest)
    for sign, number, unit in NUMBER.findall(rest):
        allowed = [v for f in figures for u, values in f.items() for v in values if unit in ("", u)]
        allowed = [*allowed, *more]
        if number[0] not in "+-":
            allowed += [-value for value in allowed]  # "a gain of"
        if not any(rounds_to(value, sign, number) for value in allowed):
            wrong.append(f"{number} {unit}".strip())
    # Digits of neither a number nor a text of the file.
    wrong += re.findall(r"\S*\d\S*", NUMBER.sub("", rest))
    return f"{', '.join(wrong)} in: {text}" if wrong else ""


def _texts(report: Report) -> list[str]:
    """The file's own texts, which may hold digits; the longest first."""
    strings = {" ".join(s.split()) for s in _strings(report) if re.search("[a-zA-Z]", s)}
    strings |= {s.replace("T", " ").replace("+00:00", " UTC") for s in strings}
    strings |= {s.strip().rstrip(".") for s in strings} | {s[:12] for s in strings if len(s) == 64}
    return sorted((s for s in strings if len(s) > 2), key=len, reverse=True)


# --- the two pages --------------------------------------------------------------------------


def report_problems(pieces: list[Piece], report: Report) -> list[str]:
    """What the pieces of report.html or report.md say that is not in report.json."""
    rows = [report["baseline"], *report["results"]]
    machines = [row for machine in report.get("machines", []) for row in machine["results"]]
    answering = [row for row in machines if "beside_torch" in row or "unknown_images" in row]
    by_heading = {
        "Every file compared": rows,
        "Accuracy": [row for row in [*rows, *answering] if row["accuracy"]],
        "Latency": [row for row in rows if row["latency_ms"]],
        "On this and other machines": machines,
    }
    strings = _texts(report)
    environment, weights = report["environment"], report["weights"]
    versions = {environment["python"], *environment["packages"].values()}
    general = [
        *_numbers([report["gates"], report["images"], report["img_size"]]),
        *_numbers([environment["cores"], environment["memory_gb"], environment["seed"]]),
        weights["parameters"] / 1e6,
        weights["macs"] / 1e9,
        len(report["gates"]["failures"]),
        *(at(row, f"timing.{name}") or 0 for row in rows for name in ("rounds", "disturbed")),
    ]

    def narrowing_problem(piece: Piece) -> str | None:
        heading, column = piece.heading, piece.column
        if heading.startswith("Back to float"):
            (tried,) = report["fallbacks"]
            if column == "Left in float":
                same = piece.text == ("; ".join(tried["points"][piece.row]["float"]) or "nothing")
                return None if same else piece.text
            if column in TRIED:
                return _cell_problem(piece.text, tried["points"][piece.row], *TRIED[column])
            counted = [tried["ranking_images"], tried["layers"], report["gates"]["max_drop_pp"]]
            return _sentence_problem(piece.text, strings, (), counted)
        choices = report.get("calibration", [])
        rows = report["sensitivity"] or []
        if heading.startswith("Calibration"):
            rows = [row for choice in choices for row in choice["methods"]]
        if column == "Part":
            return None if piece.text == rows[piece.row]["unit"] else piece.text
        if column == "Worst layer":
            layer, _, figure = piece.text.removesuffix(" dB").rpartition(", ")
            worst = rows[piece.row]["by_layer"][0]
            same = layer == worst["layer"] and rounds_to(worst["sqnr_db"], "", figure)
            return None if same else piece.text
        if column in ERRORS:
            return _cell_problem(piece.text, rows[piece.row], *ERRORS[column])
        counted = [row["images"] for row in [*(report["sensitivity"] or []), *choices][:1]]
        # Those that are not shown.
        return _sentence_problem(piece.text, strings, (), [*counted, len(rows) - 20])

    def problem(piece: Piece) -> str | None:
        heading, column = piece.heading, piece.column
        if piece.text.rpartition(": ")[2] in versions:
            return None
        if column in COLUMNS and heading in by_heading:
            return _cell_problem(piece.text, by_heading[heading][piece.row], *COLUMNS[column])
        if column is not None and heading.startswith("Parity"):
            row = report["parity"][piece.row]
            if column in PARITY:
                return _cell_problem(piece.text, row, *PARITY[column])
            return _sentence_problem(piece.text, strings, (), list(_numbers(row["tolerance"])))
        if heading.startswith(("INT8 sensitivity", "Calibration", "Back to float")):
            return narrowing_problem(piece)
        if heading.startswith("Sensitivity, "):
            return _stages_problem(piece.text, report["sensitivity"])
        if heading.startswith("Worst classes"):
            named = [row for row in rows if _name(row) in heading]
            if column in CLASSES:
                classes = named[0]["changes"]["classes"]
                lost = [one for one in classes if one["top1"] < one["baseline_top1"]]
                return _cell_problem(piece.text, lost[piece.row], *CLASSES[column])
            return _sentence_problem(piece.text, strings, named, [])
        if heading == "Class by class" and column is not None:
            entry = _class_by_class(report)[piece.row]
            if column in CLASSES:
                return _cell_problem(piece.text, entry, *CLASSES[column])
            if column == "Class":
                return None if piece.text == entry["name"] else piece.text
            return _cell_problem(piece.text, entry["changes"], (column.rstrip("* "),), 1, 2)
        if column is not None and heading in by_heading:
            row = by_heading[heading][piece.row]
            streams = [row["settings"].get("NUM_STREAMS", 1)] if column == "Streams" else []
            if column == "Settings":
                values = [str(value) for value in row["settings"].values()]
                said = [words.split()[-1] for words in piece.text.split(", ")]
                return None if said == values else f"{piece.text} for {values}"
            return _sentence_problem(piece.text, strings, [] if streams else [row], streams)
        told = [*rows, *({**row, "accuracy": None} for row in machines)]
        limit = [report["gates"]["max_drop_pp"] or 0.0]
        if "answering on" in piece.text:
            told = answering
            limit += _beside_the_export(report, answering)
        named = [row for row in told if _names_row(piece.text, row)]
        return _sentence_problem(piece.text, strings, named, limit if named else general)

    return _problems(pieces, problem)


def _beside_the_export(report: Report, answering: list[Row]) -> Iterator[float]:
    """What sentences on a machine's answers may say beside its row's own figures."""
    for row in answering:
        for found in (row.get("beside_torch", {}), row.get("unknown_images", {})):
            yield from (100 * (found.get("agreement") or 0), found.get("top1") or 0)
            yield found.get("images", 0)
        for exported in report["results"]:
            if _name(exported) == _name(row) and row["accuracy"] and exported["accuracy"]:
                drops = [one["accuracy"]["drop_pp"] or 0 for one in (row, exported)]
                yield from (drops[1], abs(drops[0] - drops[1]), exported["accuracy"]["images"])


def _class_by_class(report: Report) -> list[Row]:
    """Every class with its changes by file, the one that lost most in any of them first."""
    files = [row for row in report["results"] if "changes" in row]
    entries: dict[str, Row] = {}
    for row in files:
        for one in row["changes"]["classes"]:
            entry = entries.setdefault(one["name"], {**one, "changes": {}})
            entry["changes"][_name(row)] = one["top1"] - entry["baseline_top1"]
    return sorted(entries.values(), key=lambda entry: min(entry["changes"].values()))


_STAGES = re.compile(r"(?:.* recipe\. )?[A-Z]+,? ([^:]+?):? ((?:stage )?\d.*)")


def _stages_problem(text: str, rows: list[Row]) -> str | None:
    """Of a role in a chart of sensitivities: `A, ffn project: stage 1 31.2 dB, stage 3 40.0 dB`."""
    match = _STAGES.fullmatch(text)
    if match is None:
        return f"digits in: {text}" if re.search(r"\d", text) else None
    for part in match[2].split(", "):
        stage, _, figure = part.removesuffix(" dB").rpartition(" ")
        unit = ", ".join(filter(None, [match[1], stage]))
        if not any(r["unit"] == unit and rounds_to(r["sqnr_db"], "", figure) for r in rows):
            return f"{part} in: {text}"
    return None


def _name(row: Row) -> str:
    return f"{row['target']} {row['precision']}"


def _names_row(text: str, row: Row) -> bool:
    return _name(row) in text or (row["artefact"] or "\0") in text


def comparison_problems(pieces: list[Piece], comparison: Report) -> list[str]:
    """What the pieces of comparison.html or .md say that is not in comparison.json."""
    rows, strings = comparison["rows"], _texts(comparison)
    counts = [len(rows), len({row["machine"] for row in rows})]

    def problem(piece: Piece) -> str | None:
        if piece.column in COLUMNS and piece.heading == "Every file on every machine":
            return _cell_problem(piece.text, rows[piece.row], *COLUMNS[piece.column])
        if piece.column == "Speed of":
            settings = rows[piece.row]["settings"]
            at_once = [settings["batch"], settings.get("NUM_STREAMS", 1)]
            return _sentence_problem(piece.text, strings, (), at_once)
        if piece.column is not None and piece.heading == "Reports":
            images = list(_numbers(comparison["reports"][piece.row]["images"]))
            return _sentence_problem(piece.text, strings, (), images)
        named = [r for r in rows if r["name"] in piece.text and r["machine"] in piece.text]
        longest = max((len(row["name"]) for row in named), default=0)
        named = [row for row in named if len(row["name"]) == longest]
        return _sentence_problem(piece.text, strings, named, [] if named else counts)

    return _problems(pieces, problem)


def _problems(pieces: list[Piece], problem: Any) -> list[str]:
    found = []
    for piece in pieces:
        if piece.heading != FIXED and (said := problem(piece)):
            found.append(f"{piece.heading}, {piece.column or 'text'}: {said}")
    return found


def spoiled(pieces: list[Piece]) -> Iterator[tuple[int, Piece]]:
    """Each piece with the last digit of one of its numbers changed, for every number."""
    for i, piece in enumerate(pieces):
        if piece.heading == FIXED:
            continue
        # Lines of the same length stand for names, so that places stay what they are.
        text = piece.text
        for fixed in (PHRASES, NAMES):
            text = fixed.sub(lambda word: "_" * len(word[0]), text)
        for match in NUMBER.finditer(text):
            end = match.end(2)
            digits = match[2].partition("e")[0]
            end = match.start(2) + len(digits)
            digit = str((int(piece.text[end - 1]) + 1) % 10)
            yield i, replace(piece, text=piece.text[: end - 1] + digit + piece.text[end:])
