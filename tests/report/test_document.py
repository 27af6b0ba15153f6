"""The report's promises: nothing unexplained is missing, and all three files say the same."""

from __future__ import annotations

import copy
import io
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_report import (
    make_accuracy,
    make_calibration,
    make_changes,
    make_fallback,
    make_report,
    make_row,
    make_sensitivity,
    make_speedup,
    make_timing,
)
from rich.console import Console

from cmt.errors import InputError
from cmt.report.document import render_html, render_markdown, validate, write_report
from cmt.report.render import escape_markdown
from cmt.report.terminal import terminal_table
from cmt.report.verdict import findings

SPEED_UPS = ("speedup_vs_baseline", "speedup_vs_fp32_graph")

Report = dict[str, Any]
HOSTILE = '<script>alert("x")</script>|**b**\n# [y](http://e.example) \x1b[31m\u202e_z_ `&lt;'


@pytest.fixture
def report() -> Report:
    return make_report()


class Tables(HTMLParser):
    """Cells of every body row by the caption's id, every attribute, and the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._table: list[list[str]] = []
        self._skip = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._skip = tag == "style"
        if tag == "caption":
            self._table = self.tables.setdefault(str(dict(attrs)["id"]), [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append("")

    def handle_data(self, data: str) -> None:
        if self._skip:
            return
        self.text += data
        if self._table and self._table[-1]:
            self._table[-1][-1] += data.strip()

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._table = []


def markdown_tables(page: str) -> dict[str, list[list[str]]]:
    tables: dict[str, list[list[str]]] = {}
    heading = ""
    for line in page.splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("| "):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            tables.setdefault(heading, []).append(cells)
    return tables


def printed(report: Report) -> str:
    stream = io.StringIO()
    Console(file=stream, width=80, color_system=None).print(terminal_table(report))
    return stream.getvalue()


def test_writes_three_files_that_need_nothing_else(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "bundle")
    names = sorted(path.name for path in (tmp_path / "bundle").iterdir())
    assert names == ["report.html", "report.json", "report.md"]
    text = (tmp_path / "bundle" / "report.json").read_text(encoding="utf-8")
    assert json.loads(text) == report
    assert list(json.loads(text)) == list(report)


def test_pages_print_the_figures_of_report_json(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    html = Tables((tmp_path / "report.html").read_text(encoding="utf-8")).tables
    markdown = markdown_tables((tmp_path / "report.md").read_text(encoding="utf-8"))
    rows = [written["baseline"], *written["results"]]
    for table in (html["caption-summary"][1:], markdown["Every file compared"][2:]):
        assert len(table) == len(rows)
        for cells, row in zip(table, rows, strict=True):
            assert cells[1] == f"{row['accuracy']['top1']:.2f}"
            if row["latency_ms"]:
                assert float(cells[3]) == pytest.approx(row["latency_ms"]["p50"], abs=0.005)
            else:
                assert cells[3:6] == ["n/a", "n/a", "n/a"]
    int8 = html["caption-summary"][3]
    speeds = ["1.62x [1.57, 1.67]", "1.36x [1.32, 1.40]"]
    assert int8[2:] == ["+0.10 [-0.20, +0.40]", "9.128", *speeds, "10.2 MB"]
    latency = html["caption-latency"][3]
    assert latency[8:10] == ["812", "109.6"]
    assert markdown["Latency"][4] == latency
    assert markdown["Accuracy"][2:5] == html["caption-accuracy"][1:4]


def unescaped(report: Report) -> str:
    """The Markdown page without what keeps its text from being markup."""
    return re.sub(r"\\([\[\]])", r"\1", render_markdown(report))


def test_verdict_states_speed_and_an_unresolvable_drop(report: Report) -> None:
    for page in (unescaped(report), Tables(render_html(report)).text):
        assert "1.62x [1.57, 1.67] as fast as torch" in page
        assert "and 1.36x [1.32, 1.40] as fast as the FP32 file" in page
        assert "no drop that 2,000 images can resolve (+0.10" in page
        assert "a drop of 0.40 points" in page
        assert "was not timed: TensorRT is not installed here" in page
    verdict = "Ship openvino/cmt_ti.int8.xml on this machine: 1.62x [1.57, 1.67] as fast as torch"
    cost = "(9.128 ms per image at the median), top-1 drop +0.10 [-0.20, +0.40] points."
    assert f"{verdict} {cost}" in Tables(render_html(report)).text


def test_verdict_names_the_faster_file_when_int8_is_slower(report: Report) -> None:
    report["results"][1] = make_row("openvino", "int8", 13.9, 1.06)
    page = unescaped(report)
    assert "openvino int8 is slower than openvino fp32 here: 0.89x [0.87, 0.92] the speed" in page
    assert "openvino/cmt_ti.fp32.xml is the file to take" in page
    assert "Ship openvino/cmt_ti.fp32.xml on this machine" in page


def test_verdict_holds_int8_against_fp16_too(report: Report) -> None:
    report["results"] = [
        make_row("openvino", "fp32", 10.0, 0.0),
        make_row("openvino", "fp16", 6.0, 0.0),
        make_row("openvino", "int8", 8.0, 0.1),
    ]
    page = unescaped(report)
    assert "openvino int8 is slower than openvino fp16 here: 1.55x [1.50, 1.60] the speed" in page
    assert "of the FP32 file against 2.07x [2.01, 2.13]" in page
    assert "openvino/cmt_ti.fp16.xml is the file to take" in page


def test_verdict_does_not_call_faster_what_cannot_be_told_from_as_fast(report: Report) -> None:
    report["results"][1] = make_row("openvino", "int8", 12.3, 1.2)
    page = render_markdown(report)
    assert "openvino int8 is no faster, as far as can be told, than openvino fp32 here" in page


def test_a_busy_machines_report_names_no_speed_up(report: Report) -> None:
    for row in (report["baseline"], *report["results"]):
        if "latency_ms" not in row["reasons"]:
            row["timing"] = make_timing(disturbed=25, rounds=27)
            row |= dict.fromkeys(SPEED_UPS)
            row["reasons"] |= dict.fromkeys(SPEED_UPS, "this machine was busy")
    for page in (render_markdown(report), Tables(render_html(report)).text):
        assert "This machine was busy while files were timed" in page
        assert "in 25 of 27 rounds of timing, files were kept from CPUs" in page
        assert "most of the time by other processes" in page
        assert not re.search(r"\d\.\d\dx", page)
        assert "as fast as" not in page
        assert "Ship" not in page


def test_a_system_that_does_not_tell_of_waiting_is_told(report: Report) -> None:
    for row in report["results"]:
        row["timing"] = {**make_timing(), "lost": None, "waited": None}
    page = render_markdown(report)
    assert page.count("This system does not tell how long files wait for CPUs") == 1


def test_the_file_to_ship_is_the_wider_one_where_rounding_is_no_faster_for_certain(
    report: Report,
) -> None:
    report["results"][1] = make_row("openvino", "int8", 12.3, 1.2)
    assert "Ship openvino/cmt_ti.fp32.xml on this machine" in unescaped(report)


def test_a_machines_rows_say_what_is_slower_there_and_when_it_was_busy(report: Report) -> None:
    def measured(batch: int, int8: float, **timing: int) -> list[Report]:
        rows = [make_row("openvino", "fp32", 12.41, 1.0), make_row("openvino", "int8", int8, 1.0)]
        for row in rows:
            row |= {"settings": {"threads": 4, "batch": batch}, "timing": make_timing(**timing)}
        return rows

    report["machines"] = [
        {
            "machine": "edge",
            "measured": "2026-11-30T08:00:00+00:00",
            "command": "cmt-bench bundle",
            "environment": report["environment"],
            "results": [*measured(1, 15.0), *measured(8, 9.0), *measured(16, 9.0, disturbed=9)],
        }
    ]
    page = unescaped(report)
    slower = "openvino int8 is slower than openvino fp32 here: 0.83x [0.80, 0.85] the speed"
    assert f"edge, batch 1, 4 thread(s): {slower}" in page
    assert "edge, batch 8" not in page.split("## Files")[0]
    assert "edge, batch 16, 4 thread(s): This machine was busy: in 9 of 9 rounds" in page


def test_disturbed_rounds_are_counted(report: Report) -> None:
    for row in report["results"][:2]:
        row["timing"] = make_timing(disturbed=2, rounds=11)
    assert "2 of 11 rounds of timing were disturbed" in render_markdown(report)


@pytest.mark.parametrize(("int8", "shipped"), [(0.7, "fp16"), (0.5, "int8")])
def test_verdict_names_the_file_that_is_predicted_to_be_faster_where_none_was_timed(
    report: Report, int8: float, shipped: str
) -> None:
    def row(precision: str, ms: float, moved: int, launches: int) -> Report:
        fields = {"launches": launches, "syncs": 0, "moved": moved, "constants": 1, "int8": 0.5}
        untimed = dict.fromkeys(("latency_ms", "throughput_ips", "speedup_vs_baseline"))
        made = make_row("tensorrt", precision, 1.0, 1.0, **untimed)
        reasons = {**dict.fromkeys(untimed, "no GPU"), "speedup_vs_fp32_graph": "no GPU"}
        made |= {"speedup_vs_fp32_graph": None, "reasons": reasons}
        return {**made, "predicted": {"gpu": "L4", "ms": ms, **fields}}

    report["results"] = [row("fp16", 0.6, 32_000_000, 215), row("int8", int8, 36_000_000, 259)]
    validate(report)
    page = render_markdown(report)
    assert f"tensorrt int8 is predicted to take 0.{int8 * 1000:.0f}" in page
    assert "moves 36.0 MB against 32.0 MB, in 259 launches against 215" in page
    assert f"Ship tensorrt/cmt_ti.{shipped}.xml." in page
    assert "nothing of it was measured" in page


def test_verdict_says_when_nothing_beats_torch(report: Report) -> None:
    report["results"] = [
        make_row("openvino", "int8", 20.0, 0.74, speedup_vs_fp32_graph=make_speedup(0.9))
    ]
    page = render_markdown(report)
    assert "No exported file is faster than torch on this machine" in page
    assert "slower than the FP32 file" in page


def test_failed_gates_come_first(report: Report) -> None:
    report["results"][1]["accuracy"] = make_accuracy(91.05, 2.1, [1.5, 2.7])
    failure = "openvino int8 loses 2.10 points of top-1; the limit is 1.00"
    report["gates"] = {"max_drop_pp": 1.0, "passed": False, "failures": [failure]}
    markdown, html = render_markdown(report), Tables(render_html(report)).text
    for page in (markdown, html):
        assert "1 check failed. Do not use the files that are named here." in page
        assert page.index("FAILED") < page.index(failure) < page.index("as fast as torch")
        assert "over the limit of 1.00 points" in page
        assert "Ship" not in page
    classes = {
        c for _, a in Tables(render_html(report)).elements for c in (a.get("class") or "").split()
    }
    assert "failed" in classes
    assert classes <= set(re.findall(r"\.([a-z-]+)", render_html(report))) | {"plain", "summary"}


def test_a_limit_that_is_not_confirmed_is_said_first(report: Report) -> None:
    line = "openvino/int8: top-1 drop 0.20 points keeps --max-drop 1, but its interval reaches 1.2"
    report["gates"] = {"max_drop_pp": 1.0, "passed": True, "failures": [], "unconfirmed": [line]}
    markdown, html = render_markdown(report), Tables(render_html(report)).text
    for page in (markdown, html):
        assert "not confirmed" in page
        assert f"may exceed the limit of 1.00 points: not confirmed. {line}." in page
        assert "All checks passed" not in page


def test_a_report_that_hides_an_interval_beyond_its_limit_is_refused(report: Report) -> None:
    report["results"][1]["accuracy"] = make_accuracy(93.0, 0.2, [-0.8, 1.2])
    report["gates"] = {"max_drop_pp": 1.0, "passed": True, "failures": [], "unconfirmed": []}
    with pytest.raises(InputError, match="leave out a file beyond the limit"):
        validate(report)
    del report["gates"]["unconfirmed"]  # as in early reports
    validate(report)


def test_what_was_not_measured_is_listed_with_its_reason(report: Report) -> None:
    rows = Tables(render_html(report)).tables["caption-missing"]
    missing = next(row for row in rows if row[0] == "tensorrt int8")
    assert missing[1].startswith("latency, throughput, speed-up over the baseline")
    assert missing[2].startswith("TensorRT is not installed here")
    assert "INT8 sensitivity\n\nNot measured: not asked for." in render_markdown(report)


def test_simulated_rows_are_marked_and_explained(report: Report) -> None:
    for page in (render_markdown(report).replace("\\", ""), Tables(render_html(report)).text):
        assert "tensorrt int8 *" in page
        assert "it tells nothing about speed" in page
    report["results"].pop()
    assert "nothing about speed" not in render_markdown(report)


def test_a_bundle_measured_without_torch_or_labels_still_has_pages(report: Report) -> None:
    reasons = dict.fromkeys(
        ("accuracy", "latency_ms", "throughput_ips", "speedup_vs_baseline", "peak_rss_mb"), "no"
    )
    for row in (report["baseline"], *report["results"]):
        row.update(dict.fromkeys(reasons))
        row["speedup_vs_fp32_graph"] = None
        row["reasons"] = {**row["reasons"], **reasons, "speedup_vs_fp32_graph": "no"}
    report["parity"][0]["top1_agreement"] = None
    report["gates"]["passed"] = None
    assert "1.00 points of top-1 could not be checked" in render_markdown(report)
    assert "Verdict: accuracy not checked" in render_markdown(report)
    report["gates"]["max_drop_pp"] = None
    report["images"].update(source=None, validation_sha256=None, validation=0)
    validate(report)
    assert "No exported file was timed" in render_markdown(report)
    assert "Accuracy was not measured: no." in render_html(report)
    assert "n/a" in printed(report)


def test_sensitivity_is_a_table_that_says_how_much_it_leaves_out(report: Report) -> None:
    report["sensitivity"] = [
        make_sensitivity(f"ffn expand, stage {i}", 10.0 + i) for i in range(1, 26)
    ]
    del report["sensitivity_reason"]
    validate(report)
    page = render_markdown(report)
    assert "| Part | Layers | dB | KL | Answers changed | Worst layer | Recipe |" in page
    worst = "stages.0.blocks.0.part, 19.5 dB"
    assert f"| ffn expand, stage 7 | 4 | 17.0 | 2.50e-04 | 3.12 % | {worst} | openvino |" in page
    assert "5 more are in report.json" in page


def test_sensitivity_is_drawn_with_its_figures_as_text(report: Report) -> None:
    report["sensitivity"] = [
        make_sensitivity("ffn project, stage 1", 31.24),
        make_sensitivity("stem", 35.5),
        make_sensitivity("ffn project, stage 3", 40.0),
        make_sensitivity("ffn project, stage 4", None),
    ]
    del report["sensitivity_reason"]
    validate(report)
    page = render_html(report)
    words = "A, ffn project: stage 1 31.2 dB, stage 3 40.0 dB; B, stem: 35.5 dB"
    assert f'aria-label="Sensitivity, openvino recipe. {words}"' in page
    assert "- A, ffn project: stage 1 31.2 dB, stage 3 40.0 dB" in render_markdown(report)
    assert page.count("fill-opacity: 0.6") == 6  # a dot for each layer of the three
    assert "| stages.0.blocks.0.part, no dB |" in render_markdown(report)


def test_sensitivity_of_an_early_report_has_no_layers(report: Report) -> None:
    row = make_sensitivity("stem", 35.5)
    del row["by_layer"], report["sensitivity_reason"]
    report["sensitivity"] = [row]
    validate(report)
    assert "| stem | 4 | 35.5 | 2.50e-04 | 3.12 % | n/a | openvino |" in render_markdown(report)
    assert "Sensitivity, openvino recipe" in render_html(report)


def test_what_was_tried_for_the_accepted_drop_is_a_table(report: Report) -> None:
    report["fallbacks"] = [make_fallback(met=False)]
    report["calibration"] = [make_calibration()]
    validate(report)
    for page in (render_markdown(report), Tables(render_html(report)).text):
        assert "tried for the accepted drop of 1.00 points; not met." in page
    ratio = r"1.04x \[1.01, 1.07\]"
    row = f"| ffn expand, stage 2; stem | 6 | 0.39 % | +0.25 | {ratio} | 11.0 MB | yes | yes |"
    assert row in render_markdown(report)
    assert "| mse | 33.1 | 1.20e-04 | 0.78 % | openvino | yes |" in render_markdown(report)


def test_html_loads_nothing_and_runs_nothing(report: Report) -> None:
    page = render_html(report)
    parsed = Tables(page)
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "a"}
    for _, attributes in parsed.elements:
        assert not {"srcset", "action", "data"} & set(attributes)
        assert str(attributes.get("src", "data:image/jpeg;base64,")).startswith("data:image/")
        assert str(attributes.get("href", "#")).startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    for reference in ("http:", "https:", "url(", "@import"):
        assert reference not in re.sub(r"url\(#", "", page)


def test_html_tables_have_captions_scopes_and_labels_for_small_screens(report: Report) -> None:
    elements = Tables(render_html(report)).elements
    tables = [tag for tag, _ in elements if tag == "table"]
    assert len(tables) == len([tag for tag, _ in elements if tag == "caption"]) >= 5
    assert all(
        attributes.get("scope") in ("row", "col") for tag, attributes in elements if tag == "th"
    )
    assert all(attributes.get("data-label") for tag, attributes in elements if tag == "td")
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    referenced = {a["aria-labelledby"] for _, a in elements if "aria-labelledby" in a}
    assert referenced <= set(ids)


def hostile_report() -> Report:
    report = make_report()
    report["command"] = report["family"] = HOSTILE
    report["warnings"] = [HOSTILE]
    report["images"]["source"] = HOSTILE
    report["results"][1].update(target=HOSTILE, artefact=HOSTILE, measured_by=HOSTILE)
    report["results"][1]["settings"] = {HOSTILE: HOSTILE}
    report["results"][2]["reasons"]["latency_ms"] = HOSTILE
    report["parity"][0]["stage"] = HOSTILE
    report["results"][1]["changes"]["classes"][0]["name"] = HOSTILE
    report["results"][1]["changes"]["images"][0]["key"] = HOSTILE
    report["environment"]["packages"] = {HOSTILE: HOSTILE}
    report["sensitivity"] = [{**make_sensitivity(HOSTILE, 3.0), "recipe": HOSTILE}]
    report["sensitivity"][0]["by_layer"][0]["layer"] = HOSTILE
    report["fallbacks"] = [make_fallback(met=True)]
    report["fallbacks"][0].update(cost=HOSTILE, target=HOSTILE)
    report["fallbacks"][0]["points"][1]["float"] = [HOSTILE]
    return report


def test_names_of_others_stay_text_in_html() -> None:
    page = render_html(hostile_report())
    plain = Tables(render_html(make_report())).elements
    assert "<script" not in page
    assert {tag for tag, _ in Tables(page).elements} == {tag for tag, _ in plain}
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert '<script>alert("x")</script>' in Tables(page).text


def test_names_of_others_stay_text_in_markdown() -> None:
    from markdown_it import MarkdownIt

    page = render_markdown(hostile_report())
    assert "\x1b" not in page
    html = MarkdownIt("commonmark").enable("table").render(page)
    parsed = Tables(html.replace("<table>", '<caption id="t"></caption>'))
    assert "<script" not in html
    assert not {"a", "code", "em"} & {tag for tag, _ in parsed.elements}
    assert len([tag for tag, _ in parsed.elements if tag == "h1"]) == 1
    assert '<script>alert("x")</script>|**b** # [y](http://e.example)' in parsed.text
    widths = {len(row) for row in parsed.tables["t"]}
    assert widths == {3, 4, 7, 8, 12}  # no name has split a row


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("openvino/cmt_ti.int8.xml", "openvino/cmt_ti.int8.xml"),
        ("-0.10 [-0.20, +0.40]", "-0.10 \\[-0.20, +0.40\\]"),
        ("a|b\nc", "a\\|b c"),
        ("- item", "\\- item"),
        ("1. item", "1\\. item"),
        ("# title", "\\# title"),
        ("_x_", "\\_x\\_"),
        ("a & <b>", "a &amp; &lt;b&gt;"),
    ],
)
def test_markdown_escapes_no_more_than_needed(text: str, expected: str) -> None:
    assert escape_markdown(text) == expected


def test_terminal_table_fits_80_columns(report: Report) -> None:
    report["results"][0]["accuracy"] = make_accuracy(81.15, 12.05, [10.31, 13.92])
    report["results"][0]["target"] = "onnxruntime"
    report["results"][1]["latency_ms"]["p50"] = 12345.678
    output = printed(report)
    lines = output.splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if line.startswith("onnxruntime"))
    assert "+12.05 [10.31" not in row  # bounds carry their sign
    assert "+12.05 [+10.31, +13.92]" in row
    assert "tensorrt*" in output
    assert "simulated" in output


def test_terminal_table_shows_foreign_names_as_text() -> None:
    output = printed(hostile_report())
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) <= 80


def change(path: str, value: Any) -> Callable[[Report], None]:
    def apply(report: Report) -> None:
        *parents, last = path.split(".")
        place: Any = report
        for name in parents:
            place = place[int(name) if name.isdigit() else name]
        place[last] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("results.0.accuracy.top1", "93", r"results\[0\]"),
        ("results.0.accuracy.top1", math.nan, r"results\[0\].accuracy.top1 is nan"),
        ("results.0.accuracy.top1", np.float32(93), "cannot be written as JSON"),
        ("results.0.accuracy.drop_ci95", [0.4, -0.2], "from high to low"),
        ("results.0.latency_ms", None, "latency_ms is null"),
        ("results.0.latency_ms.load", None, "latency_ms.load is null"),
        ("results.0.speedup_vs_baseline", None, "speedup_vs_baseline is null"),
        ("results.0.speedup_vs_baseline", 1.5, "speedup_vs_baseline"),
        ("results.0.speedup_vs_baseline.ratio", 0, "speedup_vs_baseline"),
        ("results.0.speedup_vs_baseline.ratio", 9, "a speed-up of 9 is not within its interval"),
        ("results.0.speed", 3, "speed"),
        ("results.0.measured_by", "onnxruntime (simulated)", "is simulated"),
        ("results.2.reasons", {}, "reasons does not say why"),
        ("results.2.reasons", {"latency_ms": "  "}, "reasons does not say why"),
        ("baseline.reasons", {}, "baseline.bytes is null"),
        ("sensitivity_reason", None, "sensitivity_reason"),
        ("results", [], "results"),
        ("schema", 3, "schema"),
        ("gates.passed", False, "contradicts"),
        ("gates.failures", ["x"], "contradicts"),
        ("parity.1.passed", False, "parity failed at 'simplified'"),
        ("created", "yesterday", "created"),
        ("weights.sha256", "abc", "sha256"),
    ],
)
def test_a_report_that_breaks_a_promise_is_refused_and_not_written(
    report: Report, tmp_path: Path, path: str, value: Any, message: str
) -> None:
    change(path, value)(report)
    with pytest.raises(InputError, match=message):
        write_report(report, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(make_report().keys() - {"sensitivity_reason"}))
def test_every_part_of_a_report_is_required(report: Report, name: str) -> None:
    del report[name]
    with pytest.raises(InputError, match=name):
        validate(report)


def test_validation_leaves_the_report_as_it_was(report: Report) -> None:
    before = copy.deepcopy(report)
    validate(report)
    render_html(report)
    assert report == before


def test_chart_keys_and_changes_are_the_figures_of_report_json(report: Report) -> None:
    for page in (Tables(render_html(report)).text, render_markdown(report).replace("\\", "")):
        text = " ".join(page.split())
        for expected in (
            "9.128 ms, top-1 93.05 % [92.75, 93.35], 10.2 MB",  # 93.05 + 0.10 - [0.40, -0.20]
            "+0.10 [-0.20, +0.40]",
            "8.306, 9.128, 9.950 ms",
            "5 images lost that torch gets right, 3 gained.",
            "a.png, labelled Coat: torch says Coat, this file Shirt",
        ):
            assert expected in text
    assert Tables(render_html(report)).tables["caption-changes-1"][1:] == [
        ["Coat", "200", "85.50", "83.25"]
    ]


def test_every_class_stands_beside_every_file_the_worst_first(report: Report) -> None:
    other = make_changes()
    other["classes"] = [{**one, "top1": one["baseline_top1"] - 3} for one in other["classes"][::-1]]
    report["results"][2]["changes"] = other
    table = Tables(render_html(report)).tables["caption-by-class"]
    assert table == [
        ["Class", "Images", "Baseline top-1 %", "openvino int8", "tensorrt int8 *"],
        ["Coat", "200", "85.50", "-2.25", "-3.00"],
        ["Bag", "200", "98.00", "+0.50", "-3.00"],
    ]
    assert "| Bag | 200 | 98.00 | +0.50 | -3.00 |" in render_markdown(report)


def test_a_report_with_the_worst_classes_alone_has_no_table_of_all(report: Report) -> None:
    other = make_changes()
    del other["classes"][0]
    report["results"][2]["changes"] = other
    assert "caption-by-class" not in Tables(render_html(report)).tables


def test_the_smallest_drop_that_the_images_would_show_is_said(report: Report) -> None:
    for page in (Tables(render_html(report)).text, render_markdown(report)):
        assert "one of 0.44 would show" in page  # rounded up
    assert "2,000 images would show a drop of 0.44" in printed(report)


def test_a_report_that_does_not_say_what_its_images_resolve_is_still_read(report: Report) -> None:
    for row in (report["baseline"], *report["results"]):
        del row["accuracy"]["resolvable_pp"]
    validate(report)
    assert "; one of" not in render_markdown(report)


def test_fine_tuning_is_said(report: Report) -> None:
    report["fine_tuning"] = {
        "epochs": 2,
        "images": 512,
        "source": "photos/train",
        "sha256": "ab" * 32,
        "schemes": {
            "openvino": {
                "training": [4e-4, 1e-4],
                "held_out": [9e-4, 4e-4, 1e-4],
                "chosen": 2,
                "method": "entropy",
            },
            "explicit": {"training": [4e-4, 1e-4], "held_out": [9e-4, 16e-4, 9e-4], "chosen": 0},
        },
    }
    validate(report)
    for page in (Tables(render_html(report)).text, render_markdown(report)):
        assert "fine-tuned on 512 images with entropy ranges: the error of its outputs" in page
        assert "from 3.00 to 1.00 %. What it drops is told from the original network" in page
        assert "(explicit recipe) on 512 images did not lessen the error of its outputs" in page
        assert "photos/train" in page


def test_files_that_change_no_image_are_named_in_one_line(report: Report) -> None:
    report["results"][0]["changes"] = {"lost": 0, "gained": 0, "classes": [], "images": []}
    for page in (Tables(render_html(report)).text, render_markdown(report)):
        assert "No image changed sides in openvino fp32." in page


def test_charts_have_words_and_a_mark_for_every_measured_row(report: Report) -> None:
    elements = Tables(render_html(report)).elements
    charts = [attributes for tag, attributes in elements if tag == "svg"]
    assert [str(chart["aria-label"]).split(".")[0] for chart in charts] == [
        "Top-1 against latency",
        "Top-1 drop",
        "Latency distributions",
    ]
    assert "B, openvino fp32: 12.41 ms" in str(charts[0]["aria-label"])
    assert "tensorrt" not in str(charts[0]["aria-label"])  # was not timed
    assert "D, tensorrt int8 *" in str(charts[1]["aria-label"])
    assert all(chart["role"] == "img" for chart in charts)


def test_many_files_and_images_stay_under_two_megabytes(report: Report) -> None:
    row = report["results"][1]
    row["changes"]["images"] *= 4
    report["results"] = [row] * 24
    assert len(render_html(report).encode()) < 2_000_000


def with_layers(in_file: int, **run: int) -> Report:
    report = make_report()
    report["results"][1]["layers"] = {"int8_in_file": in_file, "run": run}
    return report


def sentences(report: Report, part: str) -> list[str]:
    return [finding.text for finding in findings(report) if part in finding.text]


@pytest.mark.parametrize(("int8", "said"), [(0, True), (15, True), (48, True), (49, False)])
def test_int8_that_does_not_run_as_int8_is_said(int8: int, said: bool) -> None:
    report = with_layers(98, **({"int8": int8} if int8 else {}), f16=98 - int8, f32=4)
    validate(report)
    found = sentences(report, "ran in INT8")
    assert bool(found) == said
    if said:
        assert found == [
            f"openvino int8: {int8} of the 98 layers that the file has in INT8 ran in INT8 "
            f"(others: {98 - int8} in f16, 4 in f32). A wider file, or another runtime's INT8, "
            "may be the faster one there."
        ]


def test_a_file_without_int8_layers_does_not_lack_them() -> None:
    assert sentences(with_layers(0, f32=50), "ran in INT8") == []


def test_settings_that_the_runtime_took_otherwise_are_said_once_for_each_machine() -> None:
    report = make_report()
    row = report["results"][1] | {
        "settings": {"threads": 2, "batch": 1, "INFERENCE_PRECISION_HINT": "f16"},
        "otherwise": {"INFERENCE_PRECISION_HINT": {"asked": "bf16", "in_force": "f16"}},
    }
    report["machines"] = [
        {
            "machine": "arm-box",
            "measured": report["created"],
            "command": "cmt-bench bundle",
            "environment": report["environment"],
            "results": [row, {**row, "settings": {**row["settings"], "threads": 1}}],
        }
    ]
    validate(report)
    assert sentences(report, "was to be") == [
        "openvino int8 on arm-box: INFERENCE_PRECISION_HINT was to be bf16 and is f16."
    ]
