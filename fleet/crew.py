"""The workers that there are just now, who they are, and the files that they are sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cmt
from cmt.bundle.reader import OpenBundle
from cmt.calib_data.listing import named
from cmt.errors import InputError, MachineError
from cmt.fleet import replies
from cmt.fleet.copies import files_to_send, identity, pieces, receive, wanted
from cmt.fleet.tags import kind_of
from cmt.fleet.tasks import introduce
from cmt.targets.machine import Environment

LOOK_SECONDS = 1.0
"""Between two looks at who is there."""


@dataclass(frozen=True)
class Member:
    """A worker that may be given tasks.

    Attributes:
        kind: see `tags.kind_of`.
        not_run: by target, why its files do not run there; None where they do.
    """

    address: str
    machine: str
    tags: Sequence[str]
    environment: Environment
    kind: str
    not_run: Mapping[str, str | None]


class Crew:
    """All workers of a scheduler that have the tags.

    Args:
        client: a `distributed.Client`.
        tags: all of which a worker must have.
        bundle: whose files `send` sends; None where no task needs any.

    Attributes:
        remarks: lines for people on workers that are not used.
        without_images: addresses of those that lack images.
    """

    def __init__(
        self, client: Any, tags: Sequence[str] = (), bundle: OpenBundle | None = None
    ) -> None:
        self.client = client
        self.remarks: list[str] = []
        self.without_images: set[str] = set()
        self._tags, self._bundle = tags, bundle
        self._known: dict[str, Member | None] = {}
        self._seen: dict[str, Member] = {}
        self._looked = float("-inf")
        self._lock = threading.Lock()
        self._stopped = False

    def stop(self) -> None:
        """Have everybody who looks from now on give up."""
        self._stopped = True

    def look(self) -> Mapping[str, Member]:
        """Those that are there, by address; raises MachineError where the scheduler is gone."""
        with self._lock:
            if self._stopped:
                raise MachineError("the run was stopped")
            if time.monotonic() - self._looked >= LOOK_SECONDS:
                present = self._ask_scheduler()
                self._meet([address for address in present if address not in self._known])
                found = {address: self._known.get(address) for address in present}
                self._seen = {a: member for a, member in found.items() if member is not None}
                self._looked = time.monotonic()
            return self._seen

    def _ask_scheduler(self) -> Sequence[str]:
        try:
            return [*self.client.nthreads()]
        except Exception as error:  # Dask has kinds of its own
            raise MachineError(f"the scheduler no longer answers ({error})") from error

    def _meet(self, addresses: Sequence[str]) -> None:
        if not addresses:
            return
        said = self.client.run(introduce, workers=[*addresses], on_error="return")
        for address, text in said.items():
            if isinstance(text, OSError):  # it has gone meanwhile, or will answer later
                continue
            try:
                if isinstance(text, BaseException):
                    raise MachineError(f"it cannot say who it is ({text})")
                self._known[address] = self._member(address, replies.parse(text))
            except MachineError as error:
                self._known[address] = None
                self.remarks.append(f"the worker at {address} is not used: {error}")

    def _member(self, address: str, reply: Mapping[str, Any]) -> Member | None:
        replies.require("introduce", reply)
        if reply["version"] != cmt.__version__:
            raise MachineError(
                f"it has cmt-export {reply['version']}, not {cmt.__version__}: install the same"
            )
        if not reply["timing"]:
            raise MachineError("start it with --resources TIMING=1")
        if not set(self._tags) <= set(reply["tags"]):
            return None
        environment = reply["environment"]
        kind, machine = kind_of(environment), reply["machine"]
        return Member(address, machine, reply["tags"], environment, kind, reply["not_run"])

    def require(self, seconds: float) -> Mapping[str, Member]:
        """`look`, waiting so long for the first; raises InputError, naming tags, without any."""
        end = time.monotonic() + seconds
        while not (found := self.look()) and not self._known and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
        if found:
            return found
        why = "; ".join(self.remarks) or (
            "none has started" if not self._known else f"none has the tags {', '.join(self._tags)}"
        )
        raise InputError(f"there is no worker that can be used: {why}")

    def require_targets(self, targets: Iterable[str]) -> None:
        """Note the targets that no worker can serve; raises InputError where that is all."""
        members, reasons = self.look().values(), []
        for target in (every := [*dict.fromkeys(targets)]):
            found = [m.not_run.get(target, "not part of this version") for m in members]
            if all(found):
                reasons.append(f"no worker can run {target} files: {found[0]}")
        if len(reasons) == len(every):
            raise InputError("; ".join(reasons))
        self.remarks += reasons

    def lacks(self, member: Member, images: Sequence[str], place: str) -> None:
        """Note that a worker has not got these images: it is asked about none any more."""
        self.without_images.add(member.address)
        self.remarks.append(
            f"{member.machine} answers to no images: of those asked first, {len(images)} are "
            f"not in {place}, or are others: {named(images)}"
        )

    def send(self, address: str) -> None:
        """Send a worker the files of the bundle that it lacks; raises OSError where it is gone."""
        assert self._bundle is not None
        bundle, entries = identity(self._bundle), files_to_send(self._bundle)
        ask = {"workers": [address], "on_error": "return"}
        lacking = self._one(self.client.run(wanted, bundle, entries, **ask))
        for entry in entries:
            if entry["path"] in lacking:
                for begin, content in pieces(self._bundle.path / entry["path"]):
                    self._one(self.client.run(receive, bundle, entry, begin, content, **ask))

    @staticmethod
    def _one(answers: Mapping[str, Any]) -> Any:
        """What the one worker that was asked gave."""
        given = next(iter(answers.values()), OSError("it is gone"))
        if isinstance(given, BaseException):
            raise OSError(f"a worker takes no files ({given})") from given
        return given
