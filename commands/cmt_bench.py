"""`cmt-bench`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmt.commands.console import LOG, print_table, say, takes_common
from cmt.commands.parameters import COUNT, FOLDER, MEGABYTES, SECONDS
from cmt.commands.trust import open_trusted, takes_trust
from cmt.errors import GateError, InputError
from cmt.printing import printable
from cmt.targets.settings import SCENARIOS

if TYPE_CHECKING:
    from cmt.bundle.reader import OpenBundle
    from cmt.measure.device_rows import Images
    from cmt.report.rows import Machine, Report


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.argument("bundle", type=FOLDER)
@click.option("--verify", is_flag=True, help="Check every file and golden output; measure nothing.")
@click.option("--batch", "batches", multiple=True, type=COUNT, help="Images per inference.")
@click.option("--threads", multiple=True, type=COUNT, help="CPU threads.  [default: all usable]")
@click.option("--streams", multiple=True, type=COUNT, help="OpenVINO streams, a caller each.")
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    type=click.Choice(SCENARIOS),
    help="MLPerf's, in place of batch and streams.",
)
@click.option(
    "--device", "devices", multiple=True, help="Such as GPU, NPU, AUTO, CUDA.  [default: the CPU]"
)
@click.option(
    "--val-data",
    is_flag=False,
    flag_value="bundled",
    metavar="[FOLDER]",
    help="Measure accuracy on these images, class/name.jpg; without a folder, on the bundled set.",
)
@click.option(
    "--val-count",
    type=click.IntRange(min=1),
    help="How many, torch's own first.  [default: all; of the bundled set, the export's]",
)
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
@takes_trust
@click.option("--machine", help="Name of this machine in the report.  [default: its host name]")
@takes_common(json="Print the results as in report.json; with --verify, every check.")
def bench_cli(
    *,
    bundle: Path,
    verify: bool,
    workspace: int | None,
    opt_level: int | None,
    compatible: tuple[str, ...],
    dla: int | None,
    trust: Path | None,
    runs: tuple[str, ...],
    machine: str | None,
    val_data: str | None,
    val_count: int | None,
    as_json: bool,
    quiet: bool,
    **sweep: Any,
) -> int:
    """Measure a bundle's files on this machine and add the results to its report.

    --batch, --threads, --streams and --device may repeat: every combination is measured. A device
    that answers the golden images otherwise than the exporting machine is refused. --val-data has
    a killed run go on where it stopped. Earlier results of this machine are replaced, those of
    others never. Engines that do not run on this machine's GPU and TensorRT, or are not what
    --compatible and --dla ask for, are built anew from the bundle's ONNX files, checked and put in
    their place. So are those that others built, unless --trust has the key of who signed the
    bundle: engines are native code.
    """
    from cmt.files import cache_folder
    from cmt.measure import bench
    from cmt.measure.progress import ProgressBars
    from cmt.measure.rebuild import build_for_here, notes
    from cmt.targets.tensorrt.build import BuildSettings

    opened = open_trusted(bundle, trust, runs)
    if compatible or dla is not None:
        _require_engines(opened, verify)
    images = chosen_images(opened, val_data, val_count)
    if verify:
        if images is not None:
            raise InputError("--verify measures nothing: leave --val-data out")
        checks = _checks(opened, sweep["devices"] or (None,))
        return _tell_checks(checks, not (quiet or as_json), as_json)
    machine = bench.check_machine(opened, machine)
    command = shlex.join(["cmt-bench", *sys.argv[1:]])
    building = BuildSettings(
        workspace, opt_level, cache=cache_folder(), compatible=compatible, dla=dla
    )
    with ProgressBars(not (as_json or quiet), log=LOG.lines) as progress:
        opened = build_for_here(opened, building, progress.task)
        what = bench.Sweep(**sweep)
        entry, remarks = bench.measure(opened, what, machine, command, progress.task, images)
    bench.save(opened, entry)
    warn(remarks)
    if as_json:
        click.echo(json.dumps(entry, indent=1))
        return 0
    if not quiet:
        print_measured(entry, [*notes(opened), *answered(opened, entry)])
        say(f"report: {bundle / 'report.html'}", as_is=True)
    return 0


def warn(remarks: Sequence[str]) -> None:
    for remark in remarks:
        say(f"warning: {remark}", err=True)


def _require_engines(bundle: OpenBundle, verify: bool) -> None:
    """Raise InputError where no engine would be built."""
    from cmt.measure.rebuild import why_none_is_built

    reason = "--verify builds none" if verify else why_none_is_built(bundle)
    if reason is not None:
        raise InputError(f"--compatible and --dla are for engines, and {reason}: leave them out")


def chosen_images(bundle: OpenBundle, where: str | None, count: int | None) -> Images | None:
    """The images of --val-data; None where none are asked for."""
    if where is None:
        if count is not None:
            raise InputError("--val-count chooses of --val-data: add that")
        return None
    from cmt.measure.device_rows import Images
    from cmt.measure.on_device import BUNDLED, open_images
    from cmt.report.document import report_of

    if not where:
        raise InputError("--val-data is empty: give a folder")
    if where == BUNDLED and count is None:
        count = report_of(bundle)["images"]["validation"]
    return Images(open_images(where, bundle.preprocessing.image_range), count)


def answered(bundle: OpenBundle, entry: Machine) -> list[str]:
    """Sentences on the accuracy that was measured here."""
    from cmt.report.devices import device_findings
    from cmt.report.document import report_of

    alone: Report = {**report_of(bundle), "machines": [entry]}
    return [finding.text for finding in device_findings(alone)]


def print_measured(entry: Machine, notes: list[str]) -> None:
    """The table of what was measured, and what is to be said of it."""
    from cmt.report import charts
    from cmt.report.terminal import machine_table
    from cmt.report.verdict import otherwise, speed_findings

    print_table(machine_table(entry))
    rows = entry["results"]
    found = [*speed_findings(rows, entry["machine"]), *(f for row in rows for f in otherwise(row))]
    for line in (*notes, *dict.fromkeys(finding.text for finding in found)):
        say(line)
    if (undrawn := charts.missing()) is not None:
        say(f"report.html has its charts in words alone: {undrawn}")


def _checks(
    bundle: OpenBundle, devices: Sequence[str | None]
) -> Iterator[tuple[str, bool | None, str]]:
    """What was checked, whether it passed (None: skipped) and what was found."""
    from cmt.bundle.golden import verify
    from cmt.targets.machine import usable_cores

    if bundle.trusted:
        run = bundle.manifest.get("run", "unknown")
        yield "signature", True, f"made with the key of --trust, run {run}"
    for device in devices:
        place = "" if device is None else f" on {device}"
        for check in verify(bundle, usable_cores(), device):
            yield f"{check.name}{place}", check.passed, check.detail


def _tell_checks(checks: Iterable[tuple[str, bool | None, str]], shown: bool, as_json: bool) -> int:
    """Raise GateError where one failed."""
    words = {True: "ok", False: "FAILED", None: "skipped"}
    rows: list[dict[str, object]] = []
    failed: list[str] = []
    for name, passed, detail in checks:
        rows.append({"name": name, "passed": passed, "detail": detail})
        if passed is False:
            failed.append(name)
        if shown:
            say(f"{words[passed]:8}{printable(f'{name}: {detail}')}", as_is=True)
    if as_json:
        click.echo(json.dumps({"checks": rows}, indent=1))
    if failed:
        raise GateError(
            f"{', '.join(failed)}: the results on this machine are not those of the exporting one"
        )
    return 0
