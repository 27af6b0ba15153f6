"""Jobs given to workers, one at a time each, until every job has a reply or is given up.

Dask carries them, knows who lives and keeps a machine's `TIMING`. A job is given to one worker by
name, so that it is known which job a worker died of: what a job's third worker dies of is left out.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from queue import Empty, SimpleQueue
from typing import Any

from cmt import strict_json
from cmt.errors import GateError, InputError, MachineError
from cmt.fleet import replies
from cmt.fleet.cluster import TIMING
from cmt.fleet.crew import LOOK_SECONDS, Crew, Member
from cmt.fleet.tasks import perform

TRIES = 3
"""Workers that may fail at a job."""
PATIENCE_SECONDS = 60.0
"""How long after a death another worker may take to come."""


@dataclass(frozen=True, eq=False)  # its own identity
class Job:
    """A task to be done.

    Attributes:
        name: for people.
        task: of `tasks.WORK`.
        request: its arguments, JSON.
        fits: whether a worker may do it.
    """

    name: str
    task: str
    request: Mapping[str, Any]
    fits: Callable[[Member], bool]

    @cached_property
    def text(self) -> str:
        """The request as it is sent."""
        return strict_json.dump(dict(self.request))

    @cached_property
    def key(self) -> str:
        """The same for the same job alone."""
        content = f"{self.task} {self.name} {self.text}".encode("utf-8", "replace")
        return f"cmt-{self.task}-{hashlib.sha256(content).hexdigest()}"


@dataclass(frozen=True)
class Failed:
    """Why a job has no reply.

    Attributes:
        nobody: no worker was left that could do it.
    """

    reason: str
    nobody: bool = False

    @property
    def error(self) -> MachineError:
        """What is raised of it."""
        return MachineError(self.reason)


Outcome = tuple[Job, Mapping[str, Any] | Failed]
_ERRORS = {kind.__name__: kind for kind in (InputError, GateError, MachineError)}
Perform = Callable[[str, str], str]


def reply_of(outcome: Mapping[str, Any] | Failed) -> Mapping[str, Any]:
    """The reply of a job; raises the error that a worker refused it with, or `Failed.error`."""
    if isinstance(outcome, Failed):
        raise outcome.error
    if replies.is_reply("refused", outcome):
        kind, message = outcome["refused"]
        raise _ERRORS.get(kind, MachineError)(message)
    return outcome


def dispatch(crew: Crew, jobs: Iterable[Job], work: Perform = perform) -> Iterator[Outcome]:
    """Every job with its reply, or why it has none, as they come.

    Args:
        work: what workers run, `tasks.perform` or what stands in for it.

    Raises:
        MachineError: the scheduler is gone.
    """
    shift = _Shift(crew, deque(jobs), work)
    try:
        while shift.todo or shift.running:
            yield from shift.step()
    finally:
        for _, _, future in shift.running.values():
            _forget(future)


def _forget(future: Any) -> None:
    with suppress(Exception):  # a client without a scheduler raises kinds of its own
        future.cancel()


class _Shift:
    """The state of a `dispatch`."""

    def __init__(self, crew: Crew, todo: deque[Job], work: Perform) -> None:
        self.todo = todo
        self.running: dict[str, tuple[Job, Member, Any]] = {}
        self._crew, self._work = crew, work
        self._ended: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._failures: dict[str, list[str]] = {}
        self._sent: Counter[tuple[str, str]] = Counter()
        self._died = float("-inf")

    def step(self) -> Iterator[Outcome]:
        members = self._crew.look()
        for address in [one for one in self.running if one not in members]:
            job, member, future = self.running.pop(address)
            _forget(future)
            self._died = time.monotonic()
            yield from self._again(job, f"{member.machine} died of it")
        for address, member in members.items():
            if address not in self.running:
                self._give(address, member)
        if not self.running and time.monotonic() - self._died > PATIENCE_SECONDS:
            yield from ((job, Failed("no worker is left for it", True)) for job in self.todo)
            self.todo.clear()
        elif self.todo or self.running:
            yield from self._wait()

    def _give(self, address: str, member: Member) -> None:
        job = next((one for one in self.todo if one.fits(member)), None)
        if job is None:
            return
        self.todo.remove(job)
        attempts = len(self._failures.get(job.key, ())) + self._sent[job.key, address]
        try:
            future = self._crew.client.submit(
                self._work,
                job.task,
                job.text,
                key=f"{job.key}-{attempts}" if attempts else job.key,
                workers=[address],
                resources={TIMING: 1},
            )
        except Exception as error:  # Dask has kinds of its own
            raise MachineError(f"the scheduler no longer answers ({error})") from error
        self.running[address] = (job, member, future)
        future.add_done_callback(lambda done: self._ended.put((address, done)))

    def _wait(self) -> Iterator[Outcome]:
        try:
            address, future = self._ended.get(timeout=LOOK_SECONDS)
        except Empty:
            return
        job, member, expected = self.running.get(address, (None, None, None))
        if job is None or member is None or future is not expected:
            return  # of a worker that was given up
        del self.running[address]
        yield from self._outcome(job, member, future)

    def _outcome(self, job: Job, member: Member, future: Any) -> Iterator[Outcome]:
        if future.status not in ("finished", "error"):  # the scheduler has lost it
            self.todo.appendleft(job)
            time.sleep(LOOK_SECONDS)
            return
        try:
            if future.status == "error":
                raise MachineError(str(future.exception()))
            reply = replies.parse(future.result())
            if replies.is_reply("wanted", reply):
                self._send(job, member)
            elif replies.is_reply("missing", reply):
                self._crew.lacks(member, reply["missing"], reply["place"])
                self.todo.appendleft(job)
            else:
                yield job, reply
        except (MachineError, OSError) as error:
            yield from self._again(job, f"{member.machine}: {error}")

    def _send(self, job: Job, member: Member) -> None:
        """Have the worker get the bundle's files; it is asked again then."""
        self._sent[job.key, member.address] += 1
        if self._sent[job.key, member.address] > TRIES:
            raise MachineError("it does not keep the bundle's files")
        self._crew.send(member.address)
        self.todo.appendleft(job)

    def _again(self, job: Job, failure: str) -> Iterator[Outcome]:
        failures = self._failures.setdefault(job.key, [])
        failures.append(failure)
        if len(failures) < TRIES:
            self.todo.append(job)
        else:
            yield job, Failed("; ".join(failures))
