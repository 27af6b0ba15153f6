"""The commands: parse, call, print."""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from cmt.errors import GateError, InputError, MachineError, is_out_of_memory
from cmt.variants import VARIANTS

if TYPE_CHECKING:
    from rich.table import Table

    from measure.bundle import OpenBundle

TARGET_NAMES = ("openvino", "tensorrt", "onnxruntime")
EXPORT_PACKAGES = ("torch", "safetensors", "onnx", "onnxscript", "onnxsim", "onnxruntime")
"""What the `export` extra adds to the base install."""


class ImageSize(click.ParamType):
    """`160` or `192x256` (height x width)."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        # int() would also take 1_60 and digits of other scripts.
        match = re.fullmatch(r"(-?[0-9]{1,18})(?:x(-?[0-9]{1,18}))?", str(value))
        if match is None:
            self.fail(f"'{value}' is no size: give 160, or 192x256 for height x width", param, ctx)
        return int(match[1]), int(match[2] or match[1])


class Batch(click.ParamType):
    """`8`, or `1:8:32`: the least, the usual and the most, the range None for a single number."""

    name = "n|least:usual:most"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, tuple[int, int] | None]:
        match = re.fullmatch(r"(-?[0-9]{1,18})(?::([0-9]{1,18}):([0-9]{1,18}))?", str(value))
        if match is None:
            self.fail(f"'{value}' is no batch: give 8, or 1:8:32 for least:usual:most", param, ctx)
        first, *others = (int(part) for part in match.groups() if part is not None)
        return (others[0], (first, others[1])) if others else (first, None)


class Folder(click.Path):
    """A path; a shell variable that is not set must not stand for the current one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("it is empty: give a path", param, ctx)
        return super().convert(value, param, ctx)


FOLDER = Folder(path_type=Path)
COUNT = click.IntRange(min=1, max=4096)
MEGABYTES = click.IntRange(min=1, max=2**20)
SECONDS = click.FloatRange(min=0, min_open=True, max=3600)


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.option("--variant", required=True, type=click.Choice(list(VARIANTS)), help="CMT variant.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    required=True,
    type=click.Choice(TARGET_NAMES),
    help="What to export to; may repeat.",
)
@click.option("--fp16", is_flag=True, help="Build FP16 files.")
@click.option("--int8", is_flag=True, help="Build INT8 files, calibrated on images.")
@click.option("--weights", help="Checkpoint file, 'demo' or 'random'.  [default: demo for ti]")
@click.option("--img-size", type=ImageSize(), help="Input size.  [default: the weights' own]")
@click.option(
    "--output",
    type=click.Choice(("logits", "features")),
    default="logits",
    help="Class logits, or the four stage maps for detection and segmentation.",
)
@click.option(
    "--batch", type=Batch(), default="1", help="Images per inference; TensorRT: or a range."
)
@click.option(
    "--embed-preprocess",
    is_flag=True,
    help="Files take uint8 NHWC images, resized and cropped, and normalise them inside.",
)
@click.option("--calib-data", type=FOLDER, help="Calibration images.  [default: bundled]")
@click.option("--calib-count", default=512, help="How many of them.")
@click.option("--val-data", type=FOLDER, help="Validation images, class/name.jpg.")
@click.option("--val-count", type=int, help="How many.  [default: all; 2000 of the bundled set]")
@click.option("--max-drop", default=1.0, metavar="PP", help="Accepted top-1 drop in points.")
@click.option("--gate-minutes", default=10.0, help="Time to fall back to float for --max-drop.")
@click.option("--sensitivity", is_flag=True, help="Measure what each part loses in INT8.")
@click.option("--qat", default=0, metavar="EPOCHS", help="Fine-tune INT8 files' networks first.")
@click.option("--qat-data", type=FOLDER, help="On these images.  [default: calibration images]")
@click.option("--gpu-arch", help="TensorRT-RTX: compute capabilities, such as sm86,sm89.")
@click.option("--tune", is_flag=True, help="Search OpenVINO's fastest settings by measuring.")
@click.option("--threads", type=int, help="CPU threads of every runtime.  [default: all]")
@click.option("--bench-seconds", default=5.0, help="Time spent on timing each file.")
@click.option("--seed", default=0, help="Of everything random.")
@click.option("--sign", type=FOLDER, metavar="KEY", help="Ed25519 private key (PEM) to sign with.")
@click.option("--out", type=FOLDER, help="The bundle's folder.  [default: cmt_VARIANT]")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--dry-run", is_flag=True, help="Say what would be built, and write nothing.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error.")
def export_cli(
    *,
    fp16: bool,
    int8: bool,
    dry_run: bool,
    verbose: bool,
    gpu_arch: str | None,
    batch: tuple[int, tuple[int, int] | None],
    **arguments: Any,
) -> int:
    """Export a CMT classifier, check every step against torch, and report cost and gain."""
    from rich.console import Console

    from export.options import ExportOptions
    from export.pipeline import export
    from measure.report import terminal_table
    from measure.verdict import printable

    gpu_archs: tuple[str, ...] = ()
    if gpu_arch is not None:
        from export.tensorrt import parse_archs

        gpu_archs = parse_archs(gpu_arch)
    precisions = [name for name, asked in (("fp16", fp16), ("int8", int8)) if asked]
    # A run that was interrupted and resumed reports what one that was not would.
    command = shlex.join(["cmt-export", *(a for a in sys.argv[1:] if a != "--resume")])
    options = ExportOptions(
        precisions=tuple(precisions),
        gpu_archs=gpu_archs,
        batch=batch[0],
        batch_range=batch[1],
        command=command,
        **arguments,
    )
    if dry_run:
        from export.preflight import preflight

        click.echo("\n".join(map(printable, preflight(options, show_progress=True))))
        return 0
    bundle = export(options, show_progress=True)
    _print_table(terminal_table(bundle.report))
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    for warning in bundle.report["warnings"]:
        errors.print(f"warning: {printable(warning)}", markup=False, emoji=False)
    for failure in bundle.failures:
        errors.print(f"gate failed: {failure}", markup=False, emoji=False)
    click.echo(f"report: {bundle.path / 'report.html'}")
    return 1 if bundle.failures else 0


def _print_table(table: Table) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 80).print(table)


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.argument("bundle", type=FOLDER)
@click.option("--verify", is_flag=True, help="Check every file and golden output; measure nothing.")
@click.option("--batch", "batches", multiple=True, type=COUNT, help="Images per inference.")
@click.option("--threads", multiple=True, type=COUNT, help="CPU threads.  [default: all]")
@click.option("--streams", multiple=True, type=COUNT, help="OpenVINO streams, a caller each.")
@click.option("--seconds", default=5.0, type=SECONDS, help="Spent on each file and combination.")
@click.option(
    "--workspace", type=MEGABYTES, metavar="MB", help="TensorRT's build: memory of a layer."
)
@click.option(
    "--opt-level", type=click.IntRange(0, 5), help="TensorRT's build: optimisation level."
)
@click.option(
    "--compatible",
    type=click.Choice(["version", "hardware"]),
    multiple=True,
    help="TensorRT's build: an engine for newer TensorRT, for other GPUs; may be slower.",
)
@click.option(
    "--dla", type=click.IntRange(0, 1), help="TensorRT's build: DLA core; the GPU runs the rest."
)
@click.option("--trust", type=FOLDER, metavar="KEY", help="Ed25519 public key (PEM) of the signer.")
@click.option("--machine", help="Name of this machine in the report.  [default: its host name]")
@click.option("--json", "as_json", is_flag=True, help="Print the results as in report.json.")
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error.")
def bench_cli(
    *,
    bundle: Path,
    verify: bool,
    workspace: int | None,
    opt_level: int | None,
    compatible: tuple[str, ...],
    dla: int | None,
    trust: Path | None,
    machine: str | None,
    as_json: bool,
    verbose: bool,
    **sweep: Any,
) -> int:
    """Measure a bundle's files on this machine and add the results to its report.

    --batch, --threads and --streams may repeat: every combination is measured. Earlier results
    of this machine are replaced, those of others never. Engines that do not run on this machine's
    GPU and TensorRT, or are not what --compatible and --dla ask for, are built anew from the
    bundle's ONNX files, checked and put in their place.
    """
    from export.progress import ProgressBars
    from export.tensorrt import BuildSettings, timing_cache_folder
    from measure import bench
    from measure.bundle import open_bundle
    from measure.engines import build_for_here, on_dla, require_engines
    from measure.environment import usable_cores
    from measure.report import machine_table
    from measure.verdict import printable

    opened = open_bundle(bundle)
    if trust is not None:
        from measure.signature import check

        check(opened, trust)
    if compatible or dla is not None:
        if verify:
            raise InputError("--verify builds no engine: leave --compatible and --dla out")
        require_engines(opened)
    if verify:
        return _verify(opened, usable_cores())
    machine = bench.check_machine(opened, machine)
    command = shlex.join(["cmt-bench", *sys.argv[1:]])
    building = BuildSettings(
        workspace, opt_level, cache=timing_cache_folder(), compatible=compatible, dla=dla
    )
    with ProgressBars(not as_json) as progress:
        opened = build_for_here(opened, building, progress.task)
        entry = bench.measure(opened, bench.Sweep(**sweep), machine, command, progress.task)
    bench.save(opened, entry)
    if as_json:
        click.echo(json.dumps(entry, indent=1))
        return 0
    _print_table(machine_table(entry))
    for line in on_dla(opened):
        click.echo(printable(line))
    click.echo(f"report: {bundle / 'report.html'}")
    return 0


def _verify(bundle: OpenBundle, threads: int) -> int:
    from measure.golden import verify

    failed = []
    words = {True: "ok", False: "FAILED", None: "skipped"}
    for check in verify(bundle, threads):
        click.echo(f"{words[check.passed]:8}{check.name}: {check.detail}")
        if check.passed is False:
            failed.append(check.name)
    if failed:
        raise GateError(
            f"{', '.join(failed)}: the results on this machine are not those of the exporting one"
        )
    return 0


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.argument("reports", metavar="[NAME=]BUNDLE...", nargs=-1, required=True)
@click.option("--require", "policy", help="Such as 'drop<=0.3,p50<=6ms,size<=12MB'.")
@click.option("--machine", "machines", multiple=True, help="Rows of this machine alone.")
@click.option("--file", "files", multiple=True, help="Rows of this file alone: openvino/int8.")
@click.option("--mix-images", is_flag=True, help="Accept different validation images.")
@click.option(
    "--out",
    type=Folder(path_type=Path, file_okay=False),
    help="Write comparison.html, .md and .json here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what comparison.json would hold.")
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error.")
def report_cli(
    *,
    reports: tuple[str, ...],
    policy: str | None,
    machines: tuple[str, ...],
    files: tuple[str, ...],
    mix_images: bool,
    out: Path | None,
    as_json: bool,
    verbose: bool,
) -> int:
    """Compare bundles, and what cmt-bench measured of them on other machines.

    BUNDLE is a bundle or a report.json; NAME is what to call the machine that exported it.
    With --require, on every machine some file must keep all clauses, else the exit status is 1.
    """
    from measure import compare, comparison_pages
    from measure.policy import parse_policy

    clauses = parse_policy(policy) if policy is not None else ()
    merged = compare.merge([compare.read_source(r) for r in reports], mix_images)
    comparison = compare.choose(merged, machines, files)
    if clauses:
        comparison = compare.require(comparison, clauses, machines or compare.machine_names(merged))
    if out is not None:
        comparison_pages.write_comparison(comparison, out)
    if as_json:
        click.echo(compare.to_json(comparison))
    else:
        _print_table(comparison_pages.terminal_table(comparison))
    for warning in comparison["warnings"]:
        click.echo(f"warning: {_one_line(warning)}", err=True)
    if clauses and comparison["requirements"]["failures"]:
        raise GateError("; ".join(comparison["requirements"]["failures"]))
    return 0


def _one_line(text: str) -> str:
    from measure.verdict import printable

    return printable(text)


def export_command() -> None:
    """Entry point of `cmt-export`."""
    again = "the same command with --resume goes on where it stopped"
    _run("cmt-export", export_cli.main, again)


def bench_command() -> None:
    """Entry point of `cmt-bench`."""
    _run("cmt-bench", bench_cli.main, "the same command starts again")


def report_command() -> None:
    """Entry point of `cmt-report`."""
    _run("cmt-report", report_cli.main, "the same command starts again")


def train_command() -> None:
    """Entry point of `cmt-train`."""

    def main(**arguments: Any) -> Any:
        from training.recipe import main

        return main.main(**arguments)

    _run("cmt-train", main, "the same command goes on from the last saved state")


def _run(name: str, main: Callable[..., Any], again: str) -> NoReturn:
    """Run a command; errors become one line on standard error and an exit status."""
    stopped: list[int] = []
    room = bytearray(4 << 20)  # to say so where memory runs out

    def stop(number: int, _: object) -> NoReturn:
        stopped.append(number)
        raise KeyboardInterrupt

    # A terminated run ends like an interrupted one: with its finished work kept.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        status = main(prog_name=name, standalone_mode=False)
    except BaseException as error:
        del room
        # Native code and imports turn a KeyboardInterrupt into errors of their own.
        if stopped or isinstance(error, (KeyboardInterrupt, click.Abort)):
            _fail(name, f"interrupted: {again}", 130)
        _explain(name, error, again)
    sys.exit(status)


def _explain(name: str, error: BaseException, again: str) -> NoReturn:
    """One line for what went wrong; what nobody foresaw keeps its traceback."""
    try:
        raise error
    except click.ClickException as error:
        _fail(name, error.format_message(), 2)
    except InputError as error:
        _fail(name, str(error), 2)
    except GateError as error:
        _fail(name, str(error), 1)
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] not in EXPORT_PACKAGES:
            raise
        _fail(name, f"{error.name} is not installed: pip install 'cmt-export[export]'", 2)
    except (OSError, MachineError, MemoryError) as error:  # a full disk, a killed process
        problem = str(error) or "out of memory"
        if isinstance(error, OSError) and error.errno is None:  # NumPy, of a file cut short
            problem = f"a file cannot be written ({error}; the disk may be full)"
        _fail(name, f"{problem}: when that is mended, {again}", 3)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        _fail(name, f"out of memory: when that is mended, {again}", 3)


def _fail(name: str, message: str, status: int) -> NoReturn:
    if "-v" in sys.argv or "--verbose" in sys.argv:
        import traceback

        traceback.print_exc()
    click.echo(f"{name}: {_one_line(message)}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    export_command()
