"""The order of a fleet's run: every machine verifies, those of a kind answer, each times alone."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from cmt import strict_json
from cmt.bundle.golden import Check
from cmt.bundle.reader import OpenBundle
from cmt.errors import GateError, InputError, MachineError
from cmt.files import cache_folder, write_whole
from cmt.fleet import replies
from cmt.fleet.copies import identity
from cmt.fleet.crew import Crew, Member
from cmt.fleet.dispatch import Job, dispatch, reply_of
from cmt.fleet.kind_accuracy import KindAccuracy
from cmt.measure.bench import with_accuracy
from cmt.measure.device_rows import Images, Measured
from cmt.measure.on_device import File
from cmt.report.rows import AskedImages, Machine
from cmt.targets.base import Task
from cmt.targets.settings import DEVICE

_TITLES = {"ready": "verifying on", "timed": "timing on"}


@dataclass(frozen=True)
class Asked:
    """What every machine is to do with a bundle.

    Attributes:
        seconds: spent on timing each file; None has the bundle verified alone.
        tune: search the settings that each file runs fastest with there first.
        images: that accuracy is measured on; None measures none.
        where: these, as `listed.open_listed` takes it.
        command: as reports have it.
    """

    seconds: float | None
    tune: bool
    images: Images | None
    where: str
    command: str


@dataclass
class Result:
    """What came of a machine.

    Attributes:
        checks: of its files.
        not_run: by path of a file, why it does not run there.
        entry: the report's; None where the bundle was only verified, or something failed.
        failure: what did.
    """

    machine: str
    checks: Sequence[Check] = ()
    not_run: Mapping[str, str] = field(default_factory=dict)
    entry: Machine | None = None
    failure: Exception | None = None


class FleetRun:
    """A bundle measured on all machines of a crew.

    Attributes:
        remarks: lines for people, beside the crew's.
    """

    def __init__(self, crew: Crew, bundle: OpenBundle, asked: Asked, task: Task) -> None:
        self.remarks: list[str] = []
        self._crew, self._bundle, self._asked, self._task = crew, bundle, asked, task
        self._common = {"bundle": identity(bundle), "trusted": bundle.trusted}
        self._kept = _Kept(bundle, asked)

    def measure(self, members: Iterable[Member]) -> list[Result]:
        """Each machine's result, by name; what was done is kept until all of it is.

        Raises:
            InputError: a folder of images is no class of the bundle, or none can be read.
        """
        kinds: dict[str, list[Member]] = {}
        for member in members:
            kinds.setdefault(member.kind, []).append(member)
        with ThreadPoolExecutor(len(kinds)) as pool:
            try:
                parts = [*pool.map(self._measure_kind, kinds.values())]
            except BaseException:
                self._crew.stop()
                raise
        found = [result for part in parts for result in part]
        if not any(result.failure for result in found):
            self._kept.forget()
        return sorted(found, key=lambda result: result.machine)

    def _measure_kind(self, members: Sequence[Member]) -> list[Result]:
        """Machines that answer alike."""
        results = [Result(machine) for machine in dict.fromkeys(m.machine for m in members)]
        try:
            self._go_through(members, results)
        except (GateError, MachineError) as error:
            for result in results:
                result.failure = result.failure or error
        return results

    def _go_through(self, members: Sequence[Member], results: Sequence[Result]) -> None:
        kind, share = members[0].kind, max(Counter(m.machine for m in members).values())
        files: list[tuple[list[File], File | None]] = []

        def is_ready(result: Result, reply: Mapping[str, Any]) -> None:
            replies.require("ready", reply)
            result.checks = [Check(**check) for check in reply["checks"]]
            result.not_run = reply["not_run"]
            files.append(replies.files_of_reply(self._bundle, reply))
            wrong = [check for check in result.checks if check.passed is False]
            if wrong:
                raise GateError("; ".join(f"{check.name} {check.detail}" for check in wrong))

        self._each(kind, results, "ready", {"seconds": self._asked.seconds or 1.0}, is_ready)
        able = [result for result in results if result.failure is None]
        if self._asked.seconds is None or not able:
            return
        judged: Measured | str | None = None
        if self._asked.images is not None:
            machines = {result.machine for result in able}
            accuracy = KindAccuracy(
                *(self._crew, self._bundle, kind, machines, share),
                *(self._asked.where, self._common, *files[0]),
            )
            judged = accuracy.measure(self._asked.images, self._task)
            self.remarks += accuracy.remarks
        self._time(kind, able, judged)

    def _time(self, kind: str, results: Sequence[Result], judged: Measured | str | None) -> None:
        command = self._asked.command

        def is_timed(result: Result, reply: Mapping[str, Any]) -> None:
            entry = replies.entry_of_reply(self._bundle, reply, result.machine, command)
            result.entry = _with_accuracies(entry, judged, [other.machine for other in results])

        request = {"seconds": self._asked.seconds, "tune": self._asked.tune, "command": command}
        self._each(kind, results, "timed", request, is_timed)

    def _each(
        self,
        kind: str,
        results: Sequence[Result],
        task: str,
        request: Mapping[str, Any],
        take: Callable[[Result, Mapping[str, Any]], None],
    ) -> None:
        """Have each machine do a task of its own, and `take` the reply; failures go into results.

        What was timed is kept, so that another run need not do it again.
        """
        asked = {self._job(kind, result.machine, task, request): result for result in results}
        kept = {job: self._kept.get(job) for job in asked}
        done = [(job, reply) for job, reply in kept.items() if reply is not None]
        todo = [job for job, reply in kept.items() if reply is None]
        with self._task(f"{_TITLES[task]} {len(asked)} machines", len(asked)) as advance:
            for job, outcome in (*done, *dispatch(self._crew, todo)):
                try:
                    reply = reply_of(outcome)
                    take(asked[job], reply)
                    self._kept.put(job, reply)
                except (InputError, GateError, MachineError) as error:
                    asked[job].failure = error
                advance(1)

    def _job(self, kind: str, machine: str, task: str, request: Mapping[str, Any]) -> Job:
        own = {"machine": machine} if task == "timed" else {}
        return Job(
            machine,
            task,
            {**self._common, **request, **own},
            lambda member: (member.kind, member.machine) == (kind, machine),
        )


def _with_accuracies(
    entry: Machine, judged: Measured | str | None, machines: Sequence[str]
) -> Machine:
    """A machine's entry with the accuracy of its files, or the reason why there is none."""
    if judged is None:
        return entry
    rows = entry["results"]
    if isinstance(judged, str):
        why = {"accuracy": judged}
        return {**entry, "results": [{**r, "reasons": {**r["reasons"], **why}} for r in rows]}
    images: AskedImages = {**judged.images}
    if len(machines) > 1:
        images["answered_by"] = [*machines]
    settings = [(row, row.get("settings", {})) for row in rows]
    measured = [with_accuracy(r, judged, own.get(DEVICE), own["batch"]) for r, own in settings]
    return {**entry, "images": images, "results": measured}


class _Kept:
    """What was timed, on disk in the user's cache, until a run is over."""

    def __init__(self, bundle: OpenBundle, asked: Asked) -> None:
        run = f"{identity(bundle)} {asked.command}"
        name = hashlib.sha256(run.encode("utf-8", "replace")).hexdigest()
        self._folder = cache_folder() / "fleet-runs" / name

    def get(self, job: Job) -> Mapping[str, Any] | None:
        """The reply to a job of an earlier run; None where there is none."""
        try:
            return replies.parse((self._folder / f"{job.key}.json").read_text("utf-8"))
        except (OSError, ValueError, MachineError):
            return None

    def put(self, job: Job, reply: Mapping[str, Any]) -> None:
        """Keep the reply to a job that took time alone; others are soon done again."""
        if job.task == "timed":
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self._folder / f"{job.key}.json", strict_json.dump(dict(reply)).encode())

    def forget(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self._folder, ignore_errors=True)
