"""`cmt-export`."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from cmt import strict_json
from cmt.commands.config import takes_config
from cmt.commands.console import LOG, print_table, say, takes_common
from cmt.commands.parameters import declared_by
from cmt.export.options import ExportOptions
from cmt.measure.progress import ProgressBars

if TYPE_CHECKING:
    from cmt.export.pipeline import Bundle


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@declared_by(ExportOptions)
@takes_config(ExportOptions)
@click.option("--dry-run", is_flag=True, help="Say what would be built, and write nothing.")
@takes_common(json="Print what report.json holds; with --dry-run, what would be built.")
def export_cli(
    *,
    fp16: bool,
    int8: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    batch: tuple[int, tuple[int, int] | None],
    gpu_archs: tuple[str, ...] | None,
    **arguments: Any,
) -> int:
    """Export a CMT classifier, check every step against torch, and report cost and gain."""
    # A run that was interrupted and resumed reports what one that was not would.
    command = shlex.join(["cmt-export", *(a for a in sys.argv[1:] if a != "--resume")])
    options = ExportOptions(
        precisions=tuple(name for name, asked in (("fp16", fp16), ("int8", int8)) if asked),
        batch=batch[0],
        batch_range=batch[1],
        gpu_archs=gpu_archs or (),
        command=command,
        **arguments,
    )
    shown = not (quiet or as_json)
    with ProgressBars(shown, options.kind, options.resume, LOG.lines) as progress:
        if dry_run:
            return _rehearse(options, progress, quiet, as_json)
        from cmt.export.pipeline import export

        bundle = export(options, progress)
    return _tell(bundle, shown, as_json)


def _rehearse(options: ExportOptions, progress: ProgressBars, quiet: bool, as_json: bool) -> int:
    from cmt.export.preflight import preflight

    lines = preflight(options, progress)
    if as_json:
        click.echo(json.dumps({"would_build": lines}, indent=1))
        return 0
    for line in () if quiet else lines:
        say(line)
    return 0


def _tell(bundle: Bundle, shown: bool, as_json: bool) -> int:
    from cmt.report.terminal import terminal_table

    if as_json:
        click.echo(strict_json.dump(bundle.report), nl=False)
    if shown:
        print_table(terminal_table(bundle.report))
    for warning in bundle.report["warnings"]:
        say(f"warning: {warning}", err=True)
    for line in bundle.report["gates"]["unconfirmed"]:
        say(f"not confirmed: {line}", err=True)
    for failure in bundle.failures:
        say(f"gate failed: {failure}", err=True)
    if shown:
        say(f"report: {bundle.path / 'report.html'}", as_is=True)
    return 1 if bundle.failures else 0
