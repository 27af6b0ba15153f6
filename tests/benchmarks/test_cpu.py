"""The CPU benchmark: what it counts, how it times, and tables that can be read."""

from __future__ import annotations

import io
import json
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from click.testing import CliRunner
from documented import commands
from rich.console import Console

from benchmarks import contenders, cpu, where_time_goes
from benchmarks.contenders import PEAK, Contender, int8_product
from benchmarks.other_networks import CMT_TOP1, RIVAL_GROUPS, RIVALS
from benchmarks.result_tables import make_tables, to_markdown, to_rich
from cmt.measure.statistics import paired_ratio
from cmt.network import count_macs
from cmt.targets.openvino import OPENVINO_SETTINGS
from cmt.variants import VARIANTS

SIDE = 64
DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", RIVALS)
def test_networks_have_their_published_multiply_adds(name: str) -> None:
    package = "efficientnet_lite_pytorch" if name == "EfficientNet-Lite0" else "transformers"
    pytest.importorskip(package)
    rival = RIVALS[name]
    gmacs = count_macs(rival.build(), (rival.img_size, rival.img_size)) / 1e9
    assert gmacs == pytest.approx(rival.gmacs, rel=0.07)


def test_every_network_is_in_one_group() -> None:
    grouped = [name for groups in RIVAL_GROUPS.values() for names in groups for name in names]
    assert sorted(grouped) == sorted(RIVALS)
    assert RIVAL_GROUPS.keys() == CMT_TOP1.keys()


def test_ratio_is_paired_by_round() -> None:
    theirs = [10.0, 20.0, 30.0, 40.0]
    ratio = paired_ratio([ms / 2 for ms in theirs], theirs)
    assert ratio == {"median": 2.0, "q1": 2.0, "q3": 2.0}


@pytest.mark.usefixtures("exact_int8_sums")
def test_peak_is_an_int8_matrix_product() -> None:
    compiled = ov.Core().compile_model(int8_product(SIDE), "CPU")
    kinds = {
        node.get_rt_info()["layerType"].astype(str): node.get_rt_info()["runtimePrecision"].astype(
            str
        )
        for node in compiled.get_runtime_model().get_ops()
    }
    assert kinds.get("FullyConnected", kinds.get("MatMul")) in ("i8", "u8")
    source = np.random.default_rng(1).standard_normal((SIDE, SIDE), np.float32)
    weights = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    exact = source @ weights.T
    assert np.abs(compiled([source])[0] - exact).max() < 0.05 * np.abs(exact).max()


@pytest.fixture
def group(tmp_path: Path) -> list[Contender]:
    """A product as the yardstick, a smaller one, one that cannot be measured, and the peak."""
    rows = []
    for name, side in (("plain FP32", 8 * SIDE), ("small", SIDE), (PEAK, 8 * SIDE)):
        path = tmp_path / f"{side}.xml"
        ov.save_model(int8_product(side), path, compress_to_fp16=False)
        make = partial(Contender, runtime="openvino", path=path, shape=(side, side), top1=None)
        rows.append(
            make(
                name=name,
                network=name,
                precision="INT8",
                macs=side**3,
                settings=OPENVINO_SETTINGS,
                key=name,
            )
        )
    broken = Contender("no", "no", "FP32", "torch", tmp_path, (1,), 1, None, None, "no", "no torch")
    return [*rows[:2], broken, rows[2]]


@pytest.mark.parametrize("mode", cpu.MODES)
def test_group_is_timed(group: list[Contender], mode: str) -> None:
    result = cpu.measure_group(group, mode, threads=1, seconds=0.1, advance=lambda _: None)
    plain, small, broken = result["contenders"]
    assert plain["speedup"] == {"median": 1.0, "q1": 1.0, "q3": 1.0}
    assert small["speedup"]["median"] > 2
    assert small["images_per_second"] == pytest.approx(SIDE * 1000 / small["ms"])
    assert plain["share_of_int8_peak"] == pytest.approx(1, rel=0.9)
    assert result["int8_peak"]["macs_per_second"] > 0
    assert broken["reason"] == "no torch"
    assert all(broken[name] is None for name in cpu.MEASUREMENTS)
    json.dumps(result)


def test_finished_groups_are_kept_until_something_changes(
    group: list[Contender], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    figures: dict[str, Any] = {"int8_peak": {}, "contenders": []}
    monkeypatch.setattr(cpu, "groups", lambda *_: [("graphs", "latency", lambda: group)])
    monkeypatch.setattr(cpu, "measure_group", lambda *args: measured.append(args) or figures)
    run = partial(
        cpu.run, ["ti"], [1], others=False, work=tmp_path / "work", out=tmp_path / "results.json"
    )
    run(seconds=1, fresh=False)
    run(seconds=1, fresh=False)
    assert len(measured) == 1
    run(seconds=1, fresh=True)
    run(seconds=2, fresh=False)
    assert len(measured) == 3


def test_documented_commands_measure_and_then_print(
    group: list[Contender], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = [replace(group[0], name=contenders.PLAIN), *group[1:]]
    monkeypatch.setattr(cpu, "groups", lambda *_: [("runtimes", "latency", lambda: small)])
    quick = ["--variants", "ti", "--batch", "1", "--seconds", "0.05"]
    measuring, printing = commands("python benchmarks/cpu.py ")
    for command, more in ((measuring, quick), (printing, [])):
        arguments = [*shlex.split(command)[2:], *more]
        result = CliRunner().invoke(cpu.main, arguments, catch_exceptions=False)
        assert result.exit_code == 0
        assert contenders.PLAIN in result.output


def test_documented_command_says_where_time_goes(
    openvino_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (command,) = commands("python benchmarks/where_time_goes.py ")
    (tmp_path / "bundle").symlink_to(openvino_bundle)
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(command.replace("/cmt_ti.", "/cmt_tiny."))[2:]
    result = CliRunner().invoke(where_time_goes.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "depthwise convolutions" in result.output


def _result(name: str, network: str, precision: str, reason: str | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name,
        "network": network,
        "precision": precision,
        "shape": [8, 3, 224, 224],
        "macs": 8 * 4.6e9,
        "top1": 83.5,
        "reason": reason,
        **dict.fromkeys(cpu.MEASUREMENTS),
    }
    if reason is None:
        row |= {
            "ms": 1234.5,
            "rounds_ms": [1234.5] * 8,
            "images_per_second": 1234.5,
            "speedup": {"median": 12.34, "q1": 12.0, "q3": 12.5},
            "share_of_int8_peak": 0.5,
        }
    return row


@pytest.fixture
def results() -> dict[str, Any]:
    """Results with the widest figures."""
    c = contenders
    plain = _result(c.PLAIN, "CMT-S", "FP32")
    rows = {
        "runtimes": [plain, _result("torch.compile", "CMT-S", "FP32", "no compiler")],
        "graphs": [
            plain,
            _result(c.PLAIN_BF16, "CMT-S", "BF16"),
            *(
                _result(name, "CMT-S", "INT8")
                for name in (
                    c.NNCF_DEFAULT,
                    c.NNCF_DEFAULT_BF16,
                    c.NNCF_TRANSFORMER,
                    c.NNCF_TRANSFORMER_BF16,
                    c.OURS_INT8,
                )
            ),
            _result(c.OURS_FP32, "CMT-S", "FP32"),
        ],
        "networks": [
            plain,
            _result(c.OURS_INT8, "CMT-S", "INT8"),
            *(
                _result(f"EfficientNet-Lite0 {precision}", "EfficientNet-Lite0", precision)
                for precision in ("FP32", "INT8")
            ),
        ],
    }
    groups = [
        {
            "variant": "s",
            "batch": batch,
            "mode": mode,
            "kind": kind,
            "measured": f"2026-01-{30 if batch == 1 else 31}T00:00:00+00:00",
            "int8_peak": {"what": PEAK, "macs_per_second": 2e11},
            "contenders": content,
        }
        for batch in (1, 8)
        for mode in cpu.MODES
        for kind, content in rows.items()
        if (mode, kind) != ("throughput", "runtimes")
    ]
    packages = dict.fromkeys(("openvino", "nncf", "onnxruntime", "torch"), "2026.4.1")
    environment = {"cpu": "a processor", "cpu_flags": ["avx2"], "packages": packages}
    date = "2026-02-01T00:00:00+00:00"
    return {"environment": environment, "threads": 2, "date": date, "groups": groups}


def test_tables_fit_100_columns(results: dict[str, Any]) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    for table in make_tables(results):
        console.print(to_rich(table))
    text = console.export_text()
    assert "…" not in text
    assert text.count("1234  12.34±0.25") > 10
    assert text.count("1.00 [1.00, 1.00]") > 20
    assert max(map(len, text.splitlines())) <= 100


def test_markdown_says_what_was_not_measured(results: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    output = CliRunner().invoke(cpu.main, ["--markdown", str(path)]).output
    assert output == "\n\n".join(map(to_markdown, make_tables(results))) + "\n"
    assert "| torch.compile | - | - | - | - |" in output
    assert "torch.compile: no compiler." in output
    assert "torch 2026.4.1, 2026-01-30 to 2026-01-31." in output


@pytest.fixture
def published() -> dict[str, Any]:
    return json.loads((DOCS / "data" / "cpu.json").read_text())


def test_the_published_tables_are_those_of_the_results(published: dict[str, Any]) -> None:
    page = (DOCS / "notebook" / "cpu_results.md").read_text()
    for table in make_tables(published):
        assert to_markdown(table) in page


def test_results_of_a_stopped_run_have_tables(published: dict[str, Any]) -> None:
    for count in range(1, len(published["groups"])):
        tables = make_tables({**published, "groups": published["groups"][:count]})
        assert all(len(row) == len(table.header) for table in tables for row in table.rows)


def test_ratios_are_of_the_files_that_they_name(results: dict[str, Any]) -> None:
    ms = {contenders.PLAIN: 8.0, contenders.OURS_INT8: 2.0, contenders.OURS_FP32: 5.0}
    ms |= {"EfficientNet-Lite0 FP32": 4.0, contenders.NNCF_TRANSFORMER: 3.0}
    for row in (row for group in results["groups"] for row in group["contenders"]):
        row["rounds_ms"] = [ms.get(row["name"], 6.0)] * 8
        if row["name"] == "EfficientNet-Lite0 INT8":
            row |= {"ms": None, "rounds_ms": None, "reason": "no package"}
    cells = {row[0]: row[1] for table in make_tables(results) for row in table.rows if row[1:]}
    assert cells["ours INT8 / plain FP32"] == "4.00 [4.00, 4.00]"
    assert cells["ours INT8 / better NNCF"] == "1.50 [1.50, 1.50]"
    assert cells["ours FP32 / plain FP32"] == "1.60 [1.60, 1.60]"
    assert cells["EfficientNet-Lite0 FP32"] == "0.50 [0.50, 0.50]"
    assert cells["EfficientNet-Lite0 INT8"] == "-"


def test_the_published_run_is_whole(published: dict[str, Any], tmp_path: Path) -> None:
    planned = {
        f"{variant}, batch {batch}, {mode}, {kind}"
        for variant in VARIANTS
        for batch in (1, 8)
        for kind, mode, _ in cpu.groups(contenders.Files(tmp_path), variant, batch, others=True)
    }
    assert {group["title"] for group in published["groups"]} == planned


def test_published_int8_is_ahead_of_everything_one_would_run_in_its_place(
    published: dict[str, Any],
) -> None:
    for group in published["groups"]:
        if group["kind"] == "graphs" and group["mode"] == "latency":
            ms = {row["name"]: row["ms"] for row in group["contenders"]}
            assert min(ms, key=ms.__getitem__) == contenders.OURS_INT8, group["title"]
