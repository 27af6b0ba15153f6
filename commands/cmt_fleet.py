"""`cmt-fleet`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmt.commands.cmt_bench import answered, chosen_images, print_measured, warn
from cmt.commands.console import LOG, say, takes_common
from cmt.commands.parameters import FOLDER, SECONDS
from cmt.commands.trust import open_trusted, takes_trust
from cmt.errors import GateError, InputError, MachineError
from cmt.printing import printable, visible

if TYPE_CHECKING:
    from cmt.bundle.reader import OpenBundle
    from cmt.fleet.fleet_run import Result

CERTIFICATES = "certificates"
WAITING_SECONDS = 30.0
"""For the first worker."""


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.argument("folder", type=FOLDER)
@click.option("--days", default=365, type=click.IntRange(1, 3650), help="How long they are good.")
@takes_common(json="Print where the files are, as an object.")
def certificates_cli(*, folder: Path, days: int, as_json: bool, quiet: bool) -> int:
    """Make a private authority, and certificates for the parts of a fleet, in a new FOLDER."""
    from cmt.fleet.certificates import make_certificates

    make_certificates(folder, days)
    if as_json:
        click.echo(json.dumps({path.stem: str(path) for path in sorted(folder.iterdir())}))
    if as_json or quiet:
        return 0
    said = f"""\
made in {visible(folder)}, good for {days} days: ca.pem, scheduler.pem, worker.pem, client.pem
Who has one of the last three can run programs on every machine of the fleet: keep them secret.
To the scheduler's machine go ca.pem and scheduler.pem; to every worker's ca.pem and worker.pem,
by scp or what else you trust; ca.pem and client.pem stay here. Then, each where it belongs:
  dask scheduler --protocol tls --tls-ca-file ca.pem --tls-cert scheduler.pem \\
      --no-dashboard --dashboard-address 127.0.0.1:0
  dask worker tls://SCHEDULER:8786 --tls-ca-file ca.pem --tls-cert worker.pem \\
      --nthreads 1 --resources TIMING=1 --no-dashboard --dashboard-address 127.0.0.1:0
  cmt-fleet BUNDLE --workers tls://SCHEDULER:8786 --certificates {visible(folder)}
The authority's key was not kept. Where one of the files was lost, make all of them anew."""
    for line in said.splitlines():
        say(line, as_is=True)
    return 0


class _FleetCommand(click.Command):
    """A command; `certificates` in the place of a bundle is another one."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        if args[:1] == [CERTIFICATES]:
            name = f"{info_name} {CERTIFICATES}"
            return certificates_cli.make_context(name, args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


@click.command(cls=_FleetCommand, context_settings={"show_default": True, "max_content_width": 100})
@click.argument("bundle", type=FOLDER)
@click.option(
    "--workers",
    required=True,
    metavar="WHERE",
    help="local, local:2, tcp:// on this machine, tls://scheduler:port, ssh://host,host.",
)
@click.option(
    "--certificates",
    type=FOLDER,
    help="For tls:// and ssh://: what `cmt-fleet certificates FOLDER` made.",
)
@click.option(
    "--tag",
    "tags",
    multiple=True,
    help="Only machines that have it: cpu, gpu, jetson, vnni, a machine's name.",
)
@click.option("--verify", is_flag=True, help="Check every file and golden output; measure nothing.")
@click.option(
    "--val-data",
    is_flag=False,
    flag_value="bundled",
    metavar="[FOLDER]",
    help="Measure accuracy on these images, which workers have in CMT_IMAGES; without a folder, "
    "on the bundled set.",
)
@click.option(
    "--val-count",
    type=click.IntRange(min=1),
    help="How many.  [default: all; of the bundled set, those of the export]",
)
@click.option("--seconds", default=5.0, type=SECONDS, help="Spent on timing each file.")
@click.option("--tune", is_flag=True, help="Search the fastest settings on each machine first.")
@takes_trust
@takes_common(json="Print the results as in report.json.")
def fleet_cli(
    *,
    bundle: Path,
    workers: str,
    certificates: Path | None,
    tags: tuple[str, ...],
    verify: bool,
    val_data: str | None,
    val_count: int | None,
    seconds: float,
    tune: bool,
    trust: Path | None,
    runs: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> int:
    """Verify and measure a bundle on several machines, and put all of it into its report.

    Each worker gets the bundle's files once. Machines of one kind answer the images together; each
    is timed on its own, with nothing else of this program running there. What was done is kept: a
    run that was stopped goes on. `cmt-fleet certificates FOLDER` makes what tls:// needs. A Dask
    worker runs whatever its scheduler sends: start none for people whom you do not trust.
    """
    from cmt.fleet.cluster import connected
    from cmt.fleet.crew import Crew
    from cmt.fleet.fleet_run import Asked, FleetRun
    from cmt.measure import bench
    from cmt.measure.on_device import BUNDLED
    from cmt.measure.progress import ProgressBars

    opened = open_trusted(bundle, trust, runs)
    images = chosen_images(opened, val_data, val_count)
    if verify and (images is not None or tune):
        raise InputError("--verify measures nothing: leave --val-data and --tune out")
    bench.require_writable(opened)
    own = None if val_data in (None, BUNDLED) else Path(str(val_data))
    command = shlex.join(["cmt-fleet", *sys.argv[1:]])
    asked = Asked(None if verify else seconds, tune, images, val_data or BUNDLED, command)
    with (
        connected(workers, certificates, own) as client,
        ProgressBars(not (as_json or quiet), log=LOG.lines) as progress,
    ):
        crew = Crew(client, tags, opened)
        members = crew.require(WAITING_SECONDS)
        crew.require_targets(artefact["target"] for artefact in opened.artefacts)
        for member in members.values():
            bench.refuse_namesake(opened, member.machine, member.environment, "CMT_MACHINE")
        warn(crew.remarks)
        said = len(crew.remarks)
        run = FleetRun(crew, opened, asked, progress.task)
        results = run.measure(members.values())
    warn([*dict.fromkeys([*crew.remarks[said:], *run.remarks])])
    return _conclude(opened, results, as_json, quiet)


def _conclude(bundle: OpenBundle, results: Sequence[Result], as_json: bool, quiet: bool) -> int:
    """Save and print what was measured; raise what failed, each machine named."""
    from cmt.measure import bench

    entries = [result.entry for result in results if result.entry is not None]
    for entry in entries:
        bench.save(bundle, entry)
    if as_json:
        click.echo(json.dumps(entries, indent=1))
    elif not quiet:
        for result in results:
            _print_checks(result)
        for entry in entries:
            print_measured(entry, answered(bundle, entry))
        if entries:
            click.echo(f"report: {visible(bundle.path / 'report.html')}")
    failed = {result.machine: result.failure for result in results if result.failure}
    if failed:
        kinds = (InputError, GateError, MachineError)
        kind = next(kind for kind in kinds if any(isinstance(e, kind) for e in failed.values()))
        raise kind("; ".join(f"{machine}: {error}" for machine, error in failed.items()))
    return 0


def _print_checks(result: Result) -> None:
    words = {True: "ok", False: "FAILED", None: "skipped"}
    for check in result.checks:
        name = printable(f"{result.machine}, {check.name}: {check.detail}")
        click.echo(f"{words[check.passed]:8}{name}")
