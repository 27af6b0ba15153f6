"""`cmt-report`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cmt.bundle.serving import SERVERS, repository_of, write_repository
from cmt.commands.console import print_table, say, takes_common
from cmt.commands.parameters import FOLDER, Folder
from cmt.commands.trust import check_trust, open_trusted, takes_trust
from cmt.errors import GateError, InputError

if TYPE_CHECKING:
    from cmt.report.rows import Requirements


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.argument("reports", metavar="[NAME=]BUNDLE...", nargs=-1, required=True)
@click.option("--require", "policy", help="Such as 'drop<=0.3,p50<=6ms,size<=12MB'.")
@click.option("--machine", "machines", multiple=True, help="Rows of this machine alone.")
@click.option("--file", "files", multiple=True, help="Rows of this file alone: openvino/int8.")
@click.option("--mix-images", is_flag=True, help="Accept different validation images.")
@click.option(
    "--out",
    type=Folder(path_type=Path, file_okay=False),
    help="Write comparison.html, .md and .json here; with --for, a folder for each server.",
)
@takes_trust
@click.option(
    "--junit", type=FOLDER, metavar="FILE", help="Write --require's results as JUnit XML."
)
@click.option(
    "--for",
    "servers",
    multiple=True,
    type=click.Choice(list(SERVERS)),
    help="Compare nothing, but write a model server's repository of BUNDLE, into --out.",
)
@takes_common(json="Print what comparison.json would hold; with --for, what was written where.")
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
    junit: Path | None,
    servers: tuple[str, ...],
    quiet: bool,
    as_json: bool,
) -> int:
    """Compare bundles, and what cmt-bench measured of them on other machines.

    BUNDLE is a bundle or a report.json; NAME is what to call the machine that exported it.
    With --require, on every machine some file must keep all clauses, else the exit status is 1;
    what fails is annotated on GitHub.
    Whoever may write to a bundle may write any figure into its report: --trust takes those alone
    that its signer measured. An older bundle of the same signer passes too; --expect-run tells it.
    """
    if servers:
        written = _hand_over(reports, servers, out, trust, runs)
        return _tell_written(written, quiet, as_json)
    from cmt.report import comparison, comparison_pages
    from cmt.report.policy import parse_policy

    clauses = parse_policy(policy) if policy is not None else ()
    if junit is not None and not clauses:
        raise InputError("--junit holds what --require finds: add --require")
    check_trust(trust, runs)
    trusted = None if trust is None else comparison.Trust(trust, runs)
    merged = comparison.merge([comparison.read_source(r, trusted) for r in reports], mix_images)
    chosen = comparison.choose(merged, machines, files)
    names = machines or comparison.machine_names(merged)
    if clauses:
        chosen = comparison.require(chosen, clauses, names)
    if out is not None:
        comparison_pages.write_comparison(chosen, out)
    if as_json:
        click.echo(comparison.to_json(chosen))
    elif not quiet:
        print_table(comparison_pages.terminal_table(chosen))
    for warning in chosen["warnings"]:
        say(f"warning: {warning}", err=True)
    if chosen["requirements"] is not None:
        _tell_ci(chosen["requirements"], names, junit)
    return 0


def _hand_over(
    bundles: Sequence[str],
    servers: Sequence[str],
    out: Path | None,
    trust: Path | None,
    runs: Sequence[str],
) -> dict[str, Path]:
    """Write a repository for each server; returns where they are."""
    if len(bundles) != 1:
        raise InputError("--for writes the repository of one bundle: name that alone")
    bundle = open_trusted(Path(bundles[0]), trust, runs)
    written = {}
    for server in dict.fromkeys(servers):
        place = repository_of(bundle.path.absolute(), server) if out is None else out / server
        place.parent.mkdir(parents=True, exist_ok=True)
        for line in write_repository(bundle, server, place):
            say(f"warning: {line}", err=True)
        written[server] = place
    return written


def _tell_written(written: Mapping[str, Path], quiet: bool, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps({server: str(place) for server, place in written.items()}))
    elif not quiet:
        for server, place in written.items():
            say(f"{server}: {place}", as_is=True)
    return 0


def _tell_ci(required: Requirements, machines: Sequence[str], junit: Path | None) -> None:
    """Raise GateError where a machine has no file that keeps every clause."""
    from cmt.report import ci

    if junit is not None:
        try:
            junit.write_text(ci.junit(required, machines), encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"cannot write {junit} ({error.strerror}): choose another --junit"
            ) from error
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in ci.github_annotations(required["failures"]):
            say(line, err=True)
    if required["failures"]:
        raise GateError("; ".join(required["failures"]))
