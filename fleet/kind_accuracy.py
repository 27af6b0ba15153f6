"""Accuracy of files on machines of one kind, which have the shards of images among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt.bundle.reader import OpenBundle
from cmt.bundle.torch_answers import read_answers
from cmt.errors import InputError, MachineError
from cmt.fleet import replies
from cmt.fleet.crew import Crew, Member
from cmt.fleet.dispatch import Failed, Job, dispatch, reply_of
from cmt.fleet.tasks import described
from cmt.measure.device_rows import Images, Measured, measure_accuracy
from cmt.measure.on_device import UNKNOWN, Elsewhere, File, Shard
from cmt.targets.base import Task


@dataclass
class KindAccuracy:
    """The machines that answer, and what they are asked.

    Attributes:
        kind, machines: whose workers answer, see `tags.kind_of`.
        share: the most workers that share one machine's CPUs.
        where: the images, as `listed.open_listed` takes it.
        common: arguments of every task.
        files, reference: of `replies.files_of_reply`.
        remarks: lines for people on shards that were left out.
        nobody: no worker could answer to any image, because of this.
    """

    crew: Crew
    bundle: OpenBundle
    kind: str
    machines: set[str]
    share: int
    where: str
    common: Mapping[str, Any]
    files: Sequence[File]
    reference: File | None
    remarks: list[str] = field(default_factory=list)
    nobody: str | None = None

    def measure(self, images: Images, task: Task) -> Measured | str:
        """The accuracy of every file; why there is none where no worker has the images."""
        elsewhere = Elsewhere(
            lambda pending: self._answer(images, pending), [self.kind, self.share], self.reference
        )
        asked = [file for file in self.files if not file.for_unknown]
        try:
            judged = measure_accuracy(self.bundle, images, asked, 0, task, elsewhere)
        except InputError:
            if self.nobody is None:
                raise
            return self.nobody
        self.remarks += judged.remarks
        return judged

    def fits(self, member: Member) -> bool:
        """Whether a worker is one of these."""
        ours = member.kind == self.kind and member.machine in self.machines
        return ours and member.address not in self.crew.without_images

    def _answer(
        self, images: Images, pending: Mapping[int, NDArray[np.int64]]
    ) -> Iterator[tuple[int, Shard]]:
        jobs = {self._job(images, places): number for number, places in pending.items()}
        answers, labels = read_answers(self.bundle), len(self.bundle.manifest["labels"])
        for job, outcome in dispatch(self.crew, jobs):
            if isinstance(outcome, Failed):
                self.nobody = outcome.reason if outcome.nobody else self.nobody
                self.remarks.append(f"left out, {job.name}: {outcome.reason}")
                continue
            listed = job.request["images"]
            digests = (bytes.fromhex(sha256) for _, sha256 in listed)
            rows = np.array([answers.rows.get(one, UNKNOWN) for one in digests], np.int64)
            places = pending[jobs[job]]
            try:
                made = replies.shard_of_reply(
                    reply_of(outcome), self.files, places, rows, answers, labels
                )
            except MachineError as error:
                self.remarks.append(f"left out, {job.name}: {error}")
                continue
            yield jobs[job], made

    def _job(self, images: Images, places: NDArray[np.int64]) -> Job:
        source = images.source
        request = {
            **self.common,
            "files": [described(file) for file in self.files],
            "share": self.share,
            "where": self.where,
            "images": [[source.key(int(i)), source.digest(int(i))] for i in places],
        }
        name = f"{len(places)} images from {source.key(int(places[0]))} on"
        return Job(name, "answer", request, self.fits)
