"""A device with the base install and one runtime can import all it needs to measure."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def test_measuring_modules_import_without_torch_onnx_or_nncf() -> None:
    program = """
        import sys

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                heavy = ("torch", "onnx", "onnxsim", "nncf", "safetensors", "matplotlib")
                runtimes = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
                if name.split(".")[0] in (*heavy, *runtimes):
                    raise ImportError(f"{name} is not in the base install")

        sys.meta_path.insert(0, Refuse())
        import cmt, cmt.calib_data.prepared, cmt.commands.main, cmt.export, cmt.targets.registry
        import cmt.commands.cmt_bench, cmt.commands.cmt_export, cmt.commands.cmt_report
        import cmt.commands.cmt_classify, cmt.commands.cmt_fleet
        import cmt.fleet.certificates, cmt.fleet.fleet_run
        cmt.Classifier, cmt.__version__
        import cmt.bundle.golden, cmt.bundle.placing, cmt.bundle.signature, cmt.bundle.writer
        import cmt.measure.latency, cmt.measure.parity, cmt.measure.statistics
        import cmt.measure.bench, cmt.measure.rebuild, cmt.measure.worker
        import cmt.report.charts, cmt.report.comparison_pages, cmt.report.document
        import cmt.targets.machine, cmt.targets.tensorrt.engine
        cmt.targets.machine.describe(0)
        print("imported")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.strip() == "imported", result.stderr


def test_names_that_need_torch_say_what_to_install(tmp_path: Path) -> None:
    program = """
        import sys

        sys.modules["torch"] = None
        import cmt
        from cmt.export import export

        for call in (
            lambda: cmt.load_model,
            lambda: cmt.rewrite_for_inference,
            lambda: export(variant="ti", targets="openvino", show_progress=True),
        ):
            try:
                call()
            except ImportError as error:
                print(error)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    advice = "torch is not installed: pip install 'cmt-export[export]'"
    assert result.stdout.splitlines() == [advice] * 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["torch", "safetensors"])
def test_commands_without_the_export_extra_say_what_to_install(name: str, tmp_path: Path) -> None:
    program = (
        "import sys; from cmt.commands.main import run; "
        f"sys.modules['{name}'] = None; run('cmt-export')"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, "--variant", "ti", "--target", "openvino", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert lines == [f"cmt-export: {name} is not installed: pip install 'cmt-export[export]'"]
    assert list(tmp_path.iterdir()) == []


def test_reports_are_written_without_matplotlib_and_say_what_draws_their_charts(
    tmp_path: Path,
) -> None:
    program = """
        import sys
        from pathlib import Path

        sys.modules["matplotlib"] = None
        from example_report import make_report, make_sensitivity
        from cmt.report.comparison import merge, read_source
        from cmt.report.comparison_pages import write_comparison
        from cmt.report.document import write_report

        report, folder = make_report(), Path(sys.argv[1])
        report["sensitivity"] = [make_sensitivity("ffn expand, stage 1", 30.0)]
        del report["sensitivity_reason"]
        write_report(report, folder)
        write_comparison(merge([read_source(str(folder))]), folder)
    """
    support = Path(__file__).with_name("support")
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(support)},
    )
    assert result.returncode == 0, result.stderr
    for name in ("report.html", "comparison.html"):
        page = (tmp_path / name).read_text(encoding="utf-8")
        assert "<svg" not in page
        said = "Matplotlib is not installed: pip install &#39;cmt-export[charts]&#39;"
        assert page.count(said) == page.count("<figure>") > 0
        assert page.count('<ul class="key">') == page.count("<figure>")
