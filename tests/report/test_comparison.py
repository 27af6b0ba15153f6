"""cmt-report: bundles and machines in one comparison, the machine named in every row."""

from __future__ import annotations

import copy
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from example_report import make_report, make_row, make_speedup, make_timing

from cmt.commands import main
from cmt.errors import InputError
from cmt.export.pipeline import Bundle
from cmt.report import charts, comparison_pages
from cmt.report.comparison import merge, read_source
from cmt.report.policy import parse_policy

Run = Callable[..., tuple[int, str, str]]


def jetson_report() -> dict[str, Any]:
    """The report of a bundle that was exported on one machine and measured on another."""
    report = make_report()
    environment = {**report["environment"], "cpu": "Cortex-A78AE", "cpu_flags": [], "gpu": "Orin"}
    reasons = {
        "accuracy": "cmt-bench measures speed; see the exporting machine's row",
        "speedup_vs_baseline": "there is no torch in this measurement",
    }
    row = make_row("openvino", "int8", 21.5, 1.0, bytes=10_204_000)
    row.update(accuracy=None, speedup_vs_baseline=None)
    entry = {
        "machine": "edge-box",
        "measured": "2026-11-23T08:00:00+00:00",
        "command": "cmt-bench bundle",
        "environment": environment,
        "results": [{**row, "reasons": reasons}],
    }
    return {**report, "machines": [entry]}


def xs_report() -> dict[str, Any]:
    report = make_report()
    report.update(variant="xs", created="2026-11-22T21:00:00+00:00")
    report["environment"] = {**report["environment"], "cpu": "Ryzen 9 9950X", "gpu": "RTX 5090"}
    return report


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[dict[str, Any], str], Path]:
    def write(report: dict[str, Any], name: str) -> Path:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(report))
        return path

    return write


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`cmt-report ARGUMENTS`; returns (exit status, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cmt-report", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main.run("cmt-report")
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return call


def test_every_row_names_its_machine(run: Run, stored: Any, tmp_path: Path) -> None:
    first, second = stored(jetson_report(), "a"), stored(xs_report(), "b")
    status, output, _ = run(first, f"workstation={second}", "--json", "--out", tmp_path / "out")
    assert status == 0
    comparison = json.loads(output)
    machines = [row["machine"] for row in comparison["rows"]]
    assert machines == ["AMD EPYC 7B13"] * 4 + ["edge-box"] + ["workstation"] * 4
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == comparison
    page = (tmp_path / "out" / "comparison.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| xs openvino int8")]
    assert "| workstation | 93.05 |" in lines[0]
    for name in ("comparison.md", "comparison.html"):
        text = (tmp_path / "out" / name).read_text()
        assert "edge-box: ship ti openvino int8, 21.50 ms per image, top-1 drop" in text


def test_rows_of_cmt_bench_take_the_accuracy_of_the_same_file_and_say_where_from(
    stored: Any,
) -> None:
    report = jetson_report()
    rows = merge([read_source(str(stored(report, "a")))])["rows"]
    assert rows[4]["accuracy"] == report["results"][1]["accuracy"]
    assert rows[4]["accuracy_from"] == "AMD EPYC 7B13, openvino"
    assert "accuracy" not in rows[4]["reasons"]
    report["machines"][0]["results"][0]["artefact"] = "openvino/another.xml"
    rows = merge([read_source(str(stored(report, "a")))])["rows"]
    assert rows[4]["accuracy"] is None


def test_rows_that_differ_in_a_setting_say_so_in_their_names(stored: Any) -> None:
    report = jetson_report()
    (row,) = report["machines"][0]["results"]
    report["machines"][0]["results"].append({**row, "settings": {"threads": 4, "batch": 1}})
    rows = merge([read_source(str(stored(report, "a")))])["rows"]
    names = [row["name"] for row in rows if row["machine"] == "edge-box"]
    assert names == ["ti openvino int8, threads 2", "ti openvino int8, threads 4"]


def test_copies_of_a_bundle_count_once(stored: Any) -> None:
    measured, plain = jetson_report(), make_report()
    sources = [read_source(str(stored(r, name))) for r, name in ((measured, "a"), (plain, "b"))]
    assert len(merge(sources)["rows"]) == 5


def test_different_validation_images_are_refused_unless_told(run: Run, stored: Any) -> None:
    other = xs_report()
    other["images"] = {**other["images"], "validation_sha256": "12" * 32, "source": "photos"}
    paths = stored(make_report(), "a"), stored(other, "b")
    status, _, error = run(*paths)
    assert status == 2
    assert "different validation images" in error
    assert "--mix-images" in error
    assert len(error.splitlines()) == 1
    status, output, error = run(*paths, "--mix-images", "--json")
    assert status == 0
    assert "different validation images" in error
    assert "photos" in json.loads(output)["warnings"][0]
    for row in (other["baseline"], *other["results"]):  # no accuracy, nothing to mix
        row["reasons"]["accuracy"] = row["accuracy"] = None
        row["reasons"]["accuracy"] = "no labels"
        row.pop("changes", None)
    other["gates"]["passed"] = None
    assert run(paths[0], stored(other, "b"))[0] == 0


def test_two_machines_of_one_name_are_refused(run: Run, stored: Any) -> None:
    status, _, error = run(f"x={stored(make_report(), 'a')}", f"x={stored(xs_report(), 'b')}")
    assert status == 2
    assert "two machines are called 'x' (AMD EPYC 7B13, 2 cores, 15.6 GB and Ryzen" in error


@pytest.mark.parametrize("change", [{"cores": 64}, {"memory_gb": 512.0}])
def test_machines_of_one_processor_and_other_size_are_two(
    run: Run, stored: Any, change: dict[str, Any]
) -> None:
    large = make_report()
    large["environment"] = {**large["environment"], **change}
    paths = stored(make_report(), "a"), stored(large, "b")
    status, _, error = run(*paths)
    assert status == 2
    assert "two machines are called 'AMD EPYC 7B13'" in error
    assert "NAME=PATH" in error
    status, output, _ = run(paths[0], f"large={paths[1]}", "--json")
    assert status == 0
    assert len(json.loads(output)["rows"]) == 8


def test_a_destination_that_is_a_file_is_bad_input(run: Run, stored: Any) -> None:
    path = stored(make_report(), "a")
    before = path.read_bytes()
    status, _, error = run(path, "--out", path)
    assert status == 2
    assert len(error.splitlines()) == 1
    assert path.read_bytes() == before


def test_a_path_may_hold_an_equals_sign(
    run: Run, stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lr=0.1").mkdir()
    stored(make_report(), "lr=0.1/report")
    monkeypatch.chdir(tmp_path)
    for argument, machine in (("lr=0.1", "AMD EPYC 7B13"), ("ws=lr=0.1", "ws")):
        status, output, error = run(argument, "--json")
        assert status == 0, error
        assert json.loads(output)["rows"][0]["machine"] == machine


@pytest.mark.parametrize("argument", ["", "mistyped", "workstation="])
def test_a_path_that_names_nothing_is_not_the_current_folder(
    run: Run, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    monkeypatch.chdir(bundle.path)
    status, output, error = run(argument)
    assert (status, output) == (2, "")
    assert f"cannot read {argument} " in error or f"'{argument}' names no report" in error


def test_another_driver_does_not_make_another_machine(run: Run, stored: Any) -> None:
    reports = [make_report(), make_report()]
    for report, driver in zip(reports, ("560.1", "581.3"), strict=True):
        report["environment"] = {**report["environment"], "gpu": f"RTX 5090, {driver}"}
    paths = [f"x={stored(report, name)}" for report, name in zip(reports, "ab", strict=True)]
    assert run(*paths)[0] == 0


def test_streams_that_openvino_chooses_are_one_caller(
    run: Run, stored: Any, tmp_path: Path
) -> None:
    report = make_report()
    for row in report["results"]:
        row["settings"]["NUM_STREAMS"] = "AUTO"
    assert run(stored(report, "a"), "--out", tmp_path / "out")[0] == 0


def test_a_setting_that_is_no_scalar_is_bad_input(run: Run, stored: Any) -> None:
    report = make_report()
    report["results"][0]["settings"] = {"batch": [1]}
    status, output, error = run(stored(report, "a"))
    assert (status, output) == (2, "")
    assert "[1]" in error
    assert len(error.splitlines()) == 1


def test_pages_that_cannot_be_written_are_bad_input_and_leave_the_old_ones(
    run: Run, stored: Any, tmp_path: Path
) -> None:
    path, out = stored(make_report(), "a"), tmp_path / "out"
    status, output, error = run(path, "--out", path / "x")
    assert (status, output) == (2, "")
    assert f"cannot write to {path / 'x'}" in error
    assert len(error.splitlines()) == 1
    (out / "comparison.json").mkdir(parents=True)
    (out / "comparison.md").write_text("old")
    assert run(path, "--out", out)[0] == 2
    assert (out / "comparison.md").read_text() == "old"
    assert sorted(file.name for file in out.iterdir()) == ["comparison.json", "comparison.md"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{", "is no report.json"),
        ("[]", "is no report.json"),
        ('{"schema": 3}', "update cmt-export"),
        ('{"schema": 1}', "unusable"),
    ],
)
def test_what_is_no_report_is_refused_in_one_line(
    run: Run, tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    status, output, error = run(path, "--out", tmp_path / "out")
    assert (status, output) == (2, "")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["endless", "pipe", "folder of a pipe", "link to a pipe"])
def test_what_is_no_file_is_refused_at_once(run: Run, tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "report.json")
    (tmp_path / "link").symlink_to(tmp_path / "report.json")
    places = {
        "endless": "/dev/zero",
        "folder of a pipe": tmp_path,
        "link to a pipe": tmp_path / "link",
    }
    status, _, error = run(str(tmp_path / places.get(kind, "report.json")))
    assert status == 2
    assert "no regular file" in error


def test_table_fits_80_columns(run: Run, stored: Any) -> None:
    report = jetson_report()
    report["machines"][0]["machine"] = "a machine with quite a long name"
    status, output, _ = run(stored(report, "a"), stored(xs_report(), "b"))
    assert status == 0
    assert max(map(len, output.splitlines())) <= 80
    assert "+0.10 [-0.20, +0.40]" in output


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("drop<=", "no clause"),
        ("", "no clause"),
        ("drop<=0.3;p50<=6", "no clause"),
        ("speed>=2", "unknown 'speed'"),
        ("p50<=6s", "write ms"),
        ("size<=12GB", "write MB"),
        ("drop=0.3", "no clause"),
        ("p50<=\N{ARABIC-INDIC DIGIT THREE}ms", "no clause"),
        ("p50<=" + "9" * 400, "no clause"),
    ],
)
def test_a_policy_that_cannot_be_read_is_bad_input(
    run: Run, stored: Any, policy: str, message: str
) -> None:
    status, output, error = run(stored(make_report(), "a"), "--require", policy)
    assert (status, output) == (2, "")
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_policy_that_some_file_keeps_passes(run: Run, stored: Any) -> None:
    policy = "drop<=0.3, p50 <= 9.2ms, size<=12MB, speedup>=1.5x, top1>93%"
    status, output, _ = run(stored(make_report(), "a"), "--require", policy, "--json")
    assert status == 0
    assert json.loads(output)["requirements"] == {
        "clauses": ["drop<=0.3", "p50<=9.2ms", "size<=12MB", "speedup>=1.5x", "top1>93%"],
        "kept_by": ["AMD EPYC 7B13: ti openvino int8"],
        "failures": [],
    }


def test_the_clause_that_fails_is_named(run: Run, stored: Any, tmp_path: Path) -> None:
    path = stored(jetson_report(), "a")
    policy = ("--require", "drop<=0.3,p50<=6ms,size<=12MB", "--file", "openvino/int8")
    status, _, error = run(path, *policy, "--out", tmp_path)
    assert status == 1
    assert "AMD EPYC 7B13: ti openvino int8: p50<=6ms failed: 9.128 ms" in error
    assert "edge-box: ti openvino int8: p50<=6ms failed: 21.50 ms" in error
    assert "size<=12MB" not in error
    assert "FAILED: edge-box" in (tmp_path / "comparison.md").read_text()
    status, _, error = run(path, *policy, "--machine", "edge-box")
    assert "EPYC" not in error
    assert run(path, "--machine", "toaster")[0] == 2


def test_a_clause_on_what_was_not_measured_fails_with_the_reason(run: Run, stored: Any) -> None:
    arguments = ("--require", "p50<=6ms", "--file", "tensorrt/int8")
    status, _, error = run(stored(make_report(), "a"), *arguments)
    assert status == 1
    assert "p50<=6ms failed: n/a (TensorRT is not installed here" in error


def other_weights(p50: float) -> dict[str, Any]:
    """The report of another training of the same network, with one file."""
    report = make_report()
    report["weights"] = {**report["weights"], "sha256": "12" * 32}
    report["created"] = "2026-11-22T21:00:00+00:00"
    report["results"] = [make_row("openvino", "int8", p50, 1.0)]
    return report


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_policy_does_not_depend_on_the_order_of_the_reports(
    run: Run, stored: Any, order: tuple[int, int]
) -> None:
    paths = stored(make_report(), "a"), stored(other_weights(2.0), "b")
    policy = ("--require", "p50<=6ms", "--file", "openvino/int8", "--json")
    status, output, _ = run(*(paths[i] for i in order), *policy)
    assert status == 0
    kept = json.loads(output)["requirements"]["kept_by"]
    assert kept == ["AMD EPYC 7B13: ti openvino int8, weights 12121212"]


def test_rows_of_one_file_on_one_machine_have_names_of_their_own(run: Run, stored: Any) -> None:
    report = make_report()
    again = {**make_row("openvino", "int8", 2.0, 1.0), "bytes": 10_204_000}
    entry = {
        "machine": "box",
        "measured": "2026-11-23T08:00:00+00:00",
        "command": "cmt-bench bundle --threads 2 --threads 2",
        "environment": report["environment"],
        "results": [again, {**again, "latency_ms": {**again["latency_ms"], "p50": 9.0}}],
    }
    path = stored({**report, "machines": [entry]}, "a")
    policy = ("--require", "p50<=6ms", "--file", "openvino/int8", "--json")
    status, output, _ = run(f"box={path}", *policy)
    assert status == 0
    comparison = json.loads(output)
    names = [row["name"] for row in comparison["rows"]]
    assert names == [
        "ti openvino int8, measured 2026-11-22T19:00:00+00:00",
        "ti openvino int8, measured 2026-11-23T08:00:00+00:00",
        "ti openvino int8, measured 2026-11-23T08:00:00+00:00, row 2",
    ]
    assert comparison["requirements"]["kept_by"] == [f"box: {names[1]}"]


def test_a_machine_without_such_a_file_keeps_no_policy(run: Run, stored: Any) -> None:
    plain = xs_report()
    plain["results"] = plain["results"][:1]
    good, no_int8 = stored(make_report(), "a"), f"noint8={stored(plain, 'b')}"
    policy = ("--require", "p50<=100ms", "--file")
    status, _, error = run(good, no_int8, *policy, "openvino/int8")
    assert status == 1
    assert error == "cmt-report: noint8: has no such file\n"
    status, _, error = run(good, *policy, "torch/fp32")
    assert status == 1
    assert error == "cmt-report: AMD EPYC 7B13: has no such file\n"
    assert run(good, no_int8, *policy, "openvino/int8", "--machine", "AMD EPYC 7B13")[0] == 0


def test_clauses_are_inclusive_where_they_say_so() -> None:
    row = make_row("openvino", "int8", 6.0, 1.0)
    for text, kept in (("p50<=6", True), ("p50<6", False), ("p50>=6", True), ("p50>6", False)):
        (clause,) = parse_policy(text)
        assert (clause.failure(row) is None) is kept


def test_what_to_ship_is_said_for_each_variant_and_batch(stored: Any) -> None:
    report, other = jetson_report(), jetson_report()
    (row,) = report["machines"][0]["results"]
    large = make_row("openvino", "int8", 80.0, 1.0, settings={"threads": 2, "batch": 8})
    large.update({key: row[key] for key in ("accuracy", "bytes", "speedup_vs_baseline", "reasons")})
    report["machines"][0]["results"].append(large)
    other.update(variant="xs", created="2026-11-22T21:00:00+00:00", results=[], machines=[])
    over = make_row("openvino", "fp16", 2.0, 3.0)
    over["accuracy"] = {**over["accuracy"], "drop_pp": 1.5}
    other["results"] = [over]
    sources = [read_source(str(stored(r, name))) for r, name in ((report, "a"), (other, "b"))]
    headlines = comparison_pages.build_page(merge(sources)).headlines
    drop = "top-1 drop +0.10 [-0.20, +0.40]"
    assert headlines == (
        "AMD EPYC 7B13: ship ti openvino int8, 9.128 ms per image, "
        f"1.62x [1.57, 1.67] as fast as torch, {drop}.",
        "AMD EPYC 7B13: no xs file that keeps the limit was timed.",
        f"edge-box: ship ti openvino int8, batch 1, 21.50 ms per image, {drop}.",
        f"edge-box: ship ti openvino int8, batch 8, 80.00 ms per batch of 8, {drop}.",
    )


def test_what_to_ship_is_said_for_each_number_of_streams(stored: Any) -> None:
    report = jetson_report()
    entry = report["machines"][0]
    (row,) = entry["results"]
    latency = row["latency_ms"]
    entry["results"] = [
        {
            **row,
            "settings": {**row["settings"], "NUM_STREAMS": streams},
            "latency_ms": {**latency, "p50": ms},
            "throughput_ips": 1000 * streams / ms,
        }
        for streams, ms in ((1, 20.0), (2, 32.0), (4, 80.0))
    ]
    headlines = comparison_pages.build_page(
        merge([read_source(str(stored(report, "a")))])
    ).headlines
    drop = "top-1 drop +0.10 [-0.20, +0.40]"
    assert headlines[1:] == (
        "edge-box: ship ti openvino int8, streams 1, 20.00 ms per image for one caller, "
        f"50.0 images/s, {drop}.",
        "edge-box: ship ti openvino int8, streams 2, 32.00 ms per image for 2 callers at once, "
        f"62.5 images/s, {drop}.",
        "edge-box: ship ti openvino int8, streams 4, 80.00 ms per image for 4 callers at once, "
        f"50.0 images/s, {drop}.",
    )


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        ((), "machines", [], "'machines' was unexpected"),
        ((), "rows", [], r"comparison\.rows: "),
        ((), "requirements", {"clauses": ["p50<=6"]}, r"comparison\.requirements: "),
        (("rows", 0), "colour", "red", "'colour' was unexpected"),
        (("rows", 0), "machine", "", r"comparison\.rows\[0\]\.machine: "),
        (("rows", 0, "accuracy"), "top1", "93", r"comparison\.rows\[0\]\.accuracy"),
        (("reports", 0, "weights"), "macs", None, r"comparison\.reports\[0\]\.weights\.macs: "),
    ],
)
def test_a_comparison_that_breaks_its_schema_is_not_written(
    stored: Any, tmp_path: Path, place: tuple[Any, ...], key: str, value: Any, message: str
) -> None:
    comparison = merge([read_source(str(stored(jetson_report(), "a")))])
    part: Any = comparison
    for step in place:
        part = part[step]
    part[key] = value
    with pytest.raises(InputError, match=message):
        comparison_pages.write_comparison(comparison, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("policy", "changes", "figure"),
    [
        ("p50<=6", {"latency_ms": {"p50": 6.0004}}, "6.0004 ms"),
        ("p50<6", {"latency_ms": {"p50": 6.0}}, "6.000 ms"),
        ("drop<=0.3", {"accuracy": {"drop_pp": 0.3049}}, "+0.305 points"),
        ("speedup>=1.5", {"speedup_vs_baseline": make_speedup(1.4999)}, "1.4999x [1.45, 1.54]"),
        ("speedup_lower>=1.5", {"speedup_vs_baseline": make_speedup(1.5)}, "1.46x"),
        ("batch=8", {}, "1 images"),
        ("size<=1234.5", {"bytes": 1_234_510_000}, "1,234.51 MB"),
        ("drop_upper<=0.7", {"accuracy": {"drop_ci95": [-0.1, 0.75]}}, "+0.75 points"),
        ("images>=3000", {"accuracy": {"images": 2000}}, "2,000 images"),
        ("throughput>=200", {"throughput_ips": 199.5}, "199.5 ips"),
    ],
)
def test_a_figure_that_fails_does_not_read_as_if_it_passed(
    policy: str, changes: dict[str, Any], figure: str
) -> None:
    (clause,) = parse_policy(policy)
    failure = clause.failure(make_row("openvino", "int8", 6.0, 1.0, **changes))
    assert failure == f"{policy} failed: {figure}"


def floors_of(comparison: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The lowest top-1 accepted that each drawn chart was given."""
    floors, draw = [], charts.pareto

    def noting(marks: Any, floor: float | None, said: str) -> str:
        floors.append(floor)
        return draw(marks, floor, said)

    monkeypatch.setattr(charts, "pareto", noting)
    comparison_pages.build_page(comparison)
    return floors


def test_the_lowest_top1_accepted_is_drawn_where_all_baselines_agree(
    stored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = xs_report()
    sources = [read_source(str(stored(make_report(), "a"))), read_source(str(stored(other, "b")))]
    assert floors_of(merge(sources), monkeypatch) == [pytest.approx(92.15)]
    for row in (other["baseline"], *other["results"]):
        row["accuracy"] = {**row["accuracy"], "top1": row["accuracy"]["top1"] - 2}
    sources[1] = read_source(str(stored(other, "b")))
    assert floors_of(merge(sources), monkeypatch) == [None]


def test_pages_print_the_figures_of_comparison_json(stored: Any, tmp_path: Path) -> None:
    comparison = merge([read_source(str(stored(jetson_report(), "a")))])
    comparison_pages.write_comparison(comparison, tmp_path)
    written = json.loads((tmp_path / "comparison.json").read_text())
    table = (tmp_path / "comparison.md").read_text().split("## Every file on every machine")[1]
    lines = [line for line in table.split("\n## ")[0].splitlines() if line.startswith("| ")][2:]
    assert len(lines) == len(written["rows"])
    for line, row in zip(lines, written["rows"], strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1] == row["machine"]
        if row["latency_ms"]:
            assert float(cells[4]) == pytest.approx(row["latency_ms"]["p50"], abs=0.005)


def test_a_real_bundle_beside_a_stored_report(
    run: Run, bundle: Bundle, stored: Any, tmp_path: Path
) -> None:
    other = copy.deepcopy(json.loads((bundle.path / "report.json").read_text()))
    other["created"] = "2026-11-22T21:00:00+00:00"
    other["environment"] |= {"cpu": "Another CPU", "gpu": None}
    status, output, error = run(bundle.path, stored(other, "b"), "--json", "--out", tmp_path)
    assert status == 0, error
    rows = json.loads(output)["rows"]
    assert len(rows) == 2 * (1 + len(other["results"]))
    assert {row["machine"] for row in rows} == {rows[0]["machine"], "Another CPU"}
    assert (tmp_path / "comparison.html").stat().st_size < 2_000_000


def test_a_report_that_is_not_the_bundles_own_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    for name in ("manifest.json", "manifest.json.sha256", "report.json"):
        (tmp_path / name).write_bytes((bundle.path / name).read_bytes())
    read_source(str(tmp_path))
    with (tmp_path / "report.json").open("a") as file:
        file.write(" ")
    with pytest.raises(InputError, match=r"report\.json"):
        read_source(str(tmp_path))


def test_a_busy_machine_has_no_file_to_ship(run: Run, stored: Any, tmp_path: Path) -> None:
    report = jetson_report()
    (row,) = report["machines"][0]["results"]
    row["timing"] = make_timing(disturbed=9)
    run(stored(report, "a"), "--out", tmp_path / "out")
    page = (tmp_path / "out" / "comparison.md").read_text()
    assert "edge-box: was busy while files were timed, so that the fastest is open" in page
    assert "edge-box: ship" not in page


def test_a_ratio_or_drop_beyond_a_limit_is_named_with_its_interval(run: Run, stored: Any) -> None:
    policy = "speedup>=5,drop<=0.05"
    _, _, error = run(stored(make_report(), "a"), "--require", policy, "--file", "openvino/int8")
    assert "speedup>=5 failed: 1.62x [1.57, 1.67]" in error
    assert "drop<=0.05 failed: +0.10 points [-0.20, +0.40]" in error


def test_a_clause_that_an_interval_does_not_confirm_is_kept_with_a_warning(
    run: Run, stored: Any
) -> None:
    policy = ("--require", "drop<=0.3,speedup>=1.6,p50<=100", "--file", "openvino/int8")
    status, _, error = run(stored(make_report(), "a"), *policy)
    assert status == 0
    name = "AMD EPYC 7B13: ti openvino int8"
    assert f"{name}: drop<=0.3 is not confirmed: the interval reaches +0.40 points" in error
    assert f"{name}: speedup>=1.6 is not confirmed: the interval reaches 1.57x" in error
    assert error.count("is not confirmed") == 2


def test_requirements_are_written_as_junit_and_annotated_on_github(
    run: Run, stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, file = stored(jetson_report(), "a"), tmp_path / "junit.xml"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    status, _, error = run(bundle, "--require", "p50<=10ms", "--junit", file)
    assert status == 1
    suite = ElementTree.parse(file).getroot()
    assert (suite.tag, suite.get("tests"), suite.get("failures")) == ("testsuite", "2", "1")
    here, there = suite.findall("testcase")
    assert (here.get("name"), here.find("failure")) == ("AMD EPYC 7B13: p50<=10ms", None)
    failure = there.find("failure")
    assert failure is not None
    assert "21.50 ms" in str(failure.get("message"))
    annotated = [
        line for line in error.splitlines() if line.startswith("::error title=cmt-report::")
    ]
    assert [line.rpartition("::")[2] for line in annotated] == str(failure.text).splitlines()

    monkeypatch.delenv("GITHUB_ACTIONS")
    status, _, error = run(bundle, "--require", "top1>50%", "--junit", file)
    assert (status, "::error" in error) == (0, False)
    assert ElementTree.parse(file).getroot().get("failures") == "0"


def test_junit_without_requirements_or_a_place_is_bad_input(
    run: Run, stored: Any, tmp_path: Path
) -> None:
    bundle = stored(jetson_report(), "a")
    assert run(bundle, "--junit", tmp_path / "j.xml")[::2] == (
        2,
        "cmt-report: --junit holds what --require finds: add --require\n",
    )
    status, _, error = run(bundle, "--require", "top1>50%", "--junit", tmp_path / "no" / "j.xml")
    assert (status, "choose another --junit" in error) == (2, True)


def test_every_row_says_its_batch_and_streams(run: Run, stored: Any) -> None:
    report = jetson_report()
    report["machines"][0]["results"][0]["settings"] = {"batch": 8, "NUM_STREAMS": 2}
    _, out, _ = run(stored(report, "a"))
    assert re.search(r"edge-box .* batch 8 x 2 ", out)
    assert re.search(r"AMD .* batch 1 ", out)
