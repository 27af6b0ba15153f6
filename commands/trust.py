"""Whose bundles a command believes: the options for it, and the check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmt.commands.parameters import FOLDER
from cmt.errors import InputError

if TYPE_CHECKING:
    from cmt.bundle.reader import OpenBundle


def takes_trust(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--trust`, as `trust`, and `--expect-run`, as `runs`."""
    expect = click.option(
        "--expect-run", "runs", multiple=True, help="With --trust: the export it must be."
    )
    trust = click.option(
        "--trust",
        type=FOLDER,
        metavar="KEY",
        help="Public key (PEM) of the signer: Ed25519, or elliptic of OpenSSF's model.sig.",
    )
    return trust(expect(command))


def check_trust(trust: Path | None, runs: Sequence[str]) -> None:
    """Raise InputError where a run is expected and nobody is trusted to tell it."""
    if runs and trust is None:
        raise InputError("--expect-run believes what the bundle says of itself: add --trust")


def open_trusted(folder: Path, trust: Path | None, runs: Sequence[str]) -> OpenBundle:
    """The bundle, every file of it checked, and its signature where there is a key to check with.

    Raises:
        InputError: of `open_bundle`, `signature.check` and `expect_run`.
    """
    from cmt.bundle.reader import open_bundle

    check_trust(trust, runs)
    bundle = open_bundle(folder)
    if trust is None:
        return bundle
    from cmt.bundle.signature import check, expect_run

    bundle = check(bundle, trust)
    expect_run(bundle, runs)
    return bundle
