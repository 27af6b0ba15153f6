"""`cmt-report`."""

from __future__ import annotations

from pathlib import Path

import click

from cmt.commands.console import print_table, say
from cmt.commands.parameters import FOLDER, Folder
from cmt.errors import GateError, InputError


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
@click.option(
    "--trust", type=FOLDER, metavar="KEY", help="Ed25519 public key (PEM): signed rows alone."
)
@click.option("--expect-run", "runs", multiple=True, help="With --trust: the export it must be.")
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
    trust: Path | None,
    runs: tuple[str, ...],
    as_json: bool,
    verbose: bool,
) -> int:
    """Compare bundles, and what cmt-bench measured of them on other machines.

    BUNDLE is a bundle or a report.json; NAME is what to call the machine that exported it.
    With --require, on every machine some file must keep all clauses, else the exit status is 1.
    Whoever may write to a bundle may write any figure into its report: --trust takes those alone
    that its signer measured. An older bundle of the same signer passes too; --expect-run tells it.
    """
    from cmt.report import comparison, comparison_pages
    from cmt.report.policy import parse_policy

    clauses = parse_policy(policy) if policy is not None else ()
    if runs and trust is None:
        raise InputError("--expect-run believes what the bundle says of itself: add --trust")
    trusted = None if trust is None else comparison.Trust(trust, runs)
    merged = comparison.merge([comparison.read_source(r, trusted) for r in reports], mix_images)
    chosen = comparison.choose(merged, machines, files)
    if clauses:
        names = machines or comparison.machine_names(merged)
        chosen = comparison.require(chosen, clauses, names)
    if out is not None:
        comparison_pages.write_comparison(chosen, out)
    if as_json:
        click.echo(comparison.to_json(chosen))
    else:
        print_table(comparison_pages.terminal_table(chosen))
    for warning in chosen["warnings"]:
        say(f"warning: {warning}", err=True)
    required = chosen["requirements"]
    if required is not None and required["failures"]:
        raise GateError("; ".join(required["failures"]))
    return 0
