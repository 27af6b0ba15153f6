"""`cmt-export`."""

from __future__ import annotations

import shlex
import sys
from typing import Any

import click

from cmt.commands.console import print_table, say
from cmt.commands.parameters import declared_by
from cmt.export.options import ExportOptions
from cmt.printing import printable, visible


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@declared_by(ExportOptions)
@click.option("--dry-run", is_flag=True, help="Say what would be built, and write nothing.")
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error.")
def export_cli(
    *,
    fp16: bool,
    int8: bool,
    dry_run: bool,
    verbose: bool,
    batch: tuple[int, tuple[int, int] | None],
    gpu_archs: tuple[str, ...] | None,
    **arguments: Any,
) -> int:
    """Export a CMT classifier, check every step against torch, and report cost and gain."""
    from cmt.export.pipeline import export
    from cmt.report.terminal import terminal_table

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
    if dry_run:
        from cmt.export.preflight import preflight

        click.echo("\n".join(map(printable, preflight(options, show_progress=True))))
        return 0
    bundle = export(options, show_progress=True)
    print_table(terminal_table(bundle.report))
    for warning in bundle.report["warnings"]:
        say(f"warning: {warning}", err=True)
    for line in bundle.report["gates"]["unconfirmed"]:
        say(f"not confirmed: {line}", err=True)
    for failure in bundle.failures:
        say(f"gate failed: {failure}", err=True)
    click.echo(f"report: {visible(bundle.path / 'report.html')}")
    return 1 if bundle.failures else 0
