"""cmt-bench: measures where it stands, verifies, and keeps machines apart."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from speedups import assert_told

from cmt.bundle.golden import verify
from cmt.bundle.reader import open_bundle
from cmt.bundle.writer import describe_file, write_manifest
from cmt.errors import InputError
from cmt.report.document import report_of
from cmt.report.figures import milliseconds
from cmt.targets import base


@pytest.fixture
def copy(openvino_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(openvino_bundle, tmp_path / "bundle")


def cmt_bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command in a process that can import nothing beyond the base install and OpenVINO."""
    program = """
        import sys

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                heavy = ("torch", "onnx", "onnxsim", "onnxscript", "nncf", "safetensors")
                if name.split(".")[0] in (*heavy, "onnxruntime"):
                    raise ImportError(f"{name} is not in the base install")

        sys.meta_path.insert(0, Refuse())
        sys.modules["tensorrt"] = sys.modules["tensorrt_rtx"] = None
        from cmt.commands.main import run
        run("cmt-bench")
    """
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def edit_report(folder: Path, **changes: Any) -> None:
    path = folder / "report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["reports"]:
        entry |= describe_file(folder, folder / entry["path"])
    write_manifest(folder, manifest)


def test_results_are_added_as_this_machines_without_torch(copy: Path) -> None:
    quick = ("--seconds", "0.1", "--threads", "1", "--machine", "here")
    first = cmt_bench(copy, *quick, "--batch", "3", "--batch", "2", "--streams", "2", "--json")
    assert first.returncode == 0, first.stderr
    entry = json.loads(first.stdout)
    report = report_of(open_bundle(copy))
    assert report["machines"] == [entry]
    fp32, int8, smaller, _ = entry["results"]
    assert (fp32["precision"], int8["precision"]) == ("fp32", "int8")
    assert fp32["settings"] == {
        "threads": 1,
        "batch": 3,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 2,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    latency = int8["latency_ms"]
    assert latency["iterations"] >= 2 * 9 * 3  # two callers, nine rounds
    assert int8["throughput_ips"] == pytest.approx(2 * 3 * 1000 / latency["mean"])
    assert_told(int8, "speedup_vs_fp32_graph")
    # At 32 pixels the first stage has a single key, whose softmax the exporter folds.
    assert smaller["settings"]["batch"] == 2
    assert smaller["throughput_ips"] == pytest.approx(2 * 2 * 1000 / smaller["latency_ms"]["mean"])
    assert "here, " in (copy / "report.md").read_text()

    # Another machine's results stay, this one's are replaced.
    theirs = {**entry, "machine": "elsewhere"}
    theirs["environment"] = {**entry["environment"], "cpu": "another CPU"}
    edit_report(copy, machines=[theirs, entry])
    second = cmt_bench(copy, *quick)
    assert second.returncode == 0, second.stderr
    assert "openvino int8" in second.stdout
    machines = report_of(open_bundle(copy))["machines"]
    assert [machine["machine"] for machine in machines] == ["elsewhere", "here"]
    assert machines[0] == theirs

    before = (copy / "report.json").read_bytes()
    refused = cmt_bench(copy, "--seconds", "0.1", "--machine", "elsewhere")
    assert refused.returncode == 2
    assert "another machine called 'elsewhere' (another CPU)" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert (copy / "report.json").read_bytes() == before


def test_threads_and_streams_are_swept(copy: Path) -> None:
    threads, streams = ("--threads", "1", "--threads", "2"), ("--streams", "1", "--streams", "2")
    result = cmt_bench(copy, *threads, *streams, "--seconds", "0.1", "--json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["results"]
    points = [(row["settings"]["threads"], row["settings"]["NUM_STREAMS"]) for row in rows]
    assert points == [(t, s) for t in (1, 2) for s in (1, 2) for _ in ("fp32", "int8")]
    assert all(row["latency_ms"]["p50"] > 0 for row in rows)


def test_scenarios_are_measured_as_mlperf_names_them(copy: Path, photos: Path) -> None:
    both = ("--scenario", "single-stream", "--scenario", "offline")
    result = cmt_bench(copy, *both, "--seconds", "0.1", "--threads", "2", "--json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["results"]
    points = [(r["scenario"], r["settings"]["batch"], r["settings"]["NUM_STREAMS"]) for r in rows]
    assert points == [("single-stream", 1, 1)] * 2 + [("offline", 3, 2)] * 2
    page = (copy / "report.md").read_text()
    assert f"single-stream: p90 {milliseconds(rows[1]['latency_ms']['p90'])} ms" in page
    assert f"offline: {rows[3]['throughput_ips']:,.1f} images/s" in page

    judged = cmt_bench(copy, *both, "--seconds", "0.1", "--val-data", photos, "--json")
    assert judged.returncode == 0, judged.stderr
    measured = [row["accuracy"] is not None for row in json.loads(judged.stdout)["results"]]
    assert measured == [True, True, False, False]  # at the first batch

    refused = cmt_bench(copy, "--scenario", "offline", "--batch", "8")
    assert (refused.returncode, "leave out --batch" in refused.stderr) == (2, True)


def test_a_tuned_number_of_threads_holds_unless_another_is_asked_for(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    for artefact in manifest["artefacts"]:
        if "settings" in artefact:
            artefact["settings"]["INFERENCE_NUM_THREADS"] = 1
    write_manifest(copy, manifest)
    for arguments, expected in (((), 1), (("--threads", "2"), 2)):
        result = cmt_bench(copy, *arguments, "--seconds", "0.1", "--json")
        assert result.returncode == 0, result.stderr
        rows = json.loads(result.stdout)["results"]
        assert {row["settings"]["threads"] for row in rows} == {expected}


def test_verify_passes_on_a_good_bundle_without_torch(openvino_bundle: Path) -> None:
    result = cmt_bench(openvino_bundle, "--verify")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", "preprocessing:"],
        ["ok", "openvino/cmt_tiny.fp32.xml:"],
        ["ok", "openvino/cmt_tiny.int8.xml:"],
    ]


def test_verify_fails_where_a_file_answers_otherwise(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    artefact = manifest["artefacts"][1]
    assert artefact["path"].endswith("fp32.xml")
    entry = artefact["golden"]["outputs"][0]
    logits = np.load(copy / entry["path"])
    np.save(copy / entry["path"], logits + 0.01 * np.abs(logits).max())
    entry |= describe_file(copy, copy / entry["path"])
    write_manifest(copy, manifest)
    result = cmt_bench(copy, "--verify")
    assert result.returncode == 1
    assert "FAILED  openvino/cmt_tiny.fp32.xml" in result.stdout
    assert "ok      openvino/cmt_tiny.int8.xml" in result.stdout
    assert len(result.stderr.splitlines()) == 1


def test_verify_fails_where_preprocessing_differs(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["input"]["resize"]["box"] = [80, 80]
    write_manifest(copy, manifest)
    check = next(verify(open_bundle(copy), 1))
    assert check.name == "preprocessing"
    assert check.passed is False


def test_a_changed_file_is_refused_in_one_line(copy: Path) -> None:
    with (copy / "openvino" / "cmt_tiny.int8.bin").open("r+b") as file:
        file.write(b"x")
    result = cmt_bench(copy)
    assert result.returncode == 2
    assert "openvino/cmt_tiny.int8.bin" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_machine_without_any_runtime_is_told_what_to_install(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="can run none"):
        list(verify(open_bundle(copy), 1))
