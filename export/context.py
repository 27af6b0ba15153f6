"""What every part of a run reads: data alone, which no part changes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cmt.calib_data.prepared import PreparedImages
from cmt.export.images import Images
from cmt.export.inputs import Inputs
from cmt.export.options import ExportOptions
from cmt.export.stages import Stages
from cmt.measure.progress import ProgressBars
from cmt.measure.shards import Map
from cmt.targets.machine import Environment
from cmt.targets.registry import on_device
from cmt.targets.settings import CPU, Settings


@dataclass(frozen=True)
class Context:
    """One run.

    Attributes:
        machine: of `targets.machine.describe`.
        images: as torch takes them, normalised.
        stages: finished work on disk, to be asked for by name.
        shards: what answers the shards of an evaluation; None does so in this process.
    """

    options: ExportOptions
    inputs: Inputs
    machine: Environment
    images: Images
    stages: Stages
    progress: ProgressBars
    shards: Map | None = None

    @property
    def threads(self) -> int:
        """Of every runtime."""
        return self.options.thread_count

    @property
    def on_cpu(self) -> bool:
        """Whether files that are run here run on the CPU."""
        return self.options.device in (None, CPU)

    def settings(self, own: Settings) -> Settings:
        """What a file with settings of its own is run with: on the run's device."""
        return {**own, **on_device(self.options.device)}

    def as_fed(self, images: PreparedImages) -> PreparedImages:
        """The same images as the files take them, which may have the preprocessing inside."""
        return replace(images, preprocessing=self.inputs.preprocessing)
