"""One training run in a folder, which can be stopped at any time and goes on where it was.

AdamW, linear warm-up then cosine over all images, label smoothing, random resized crop,
horizontal flip, random erasing, exponential moving average (EMA) of the weights. The input size
grows along a schedule, position tables resized bicubically between. Every random choice comes
from the seed and the step, so that a stop leaves no trace.
"""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmt.calib_data.prepared import clipped
from cmt.calib_data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from cmt.calib_data.sources import ImageSource
from cmt.errors import InputError
from cmt.layouts import to_public_layout
from cmt.training.batches import Batches
from cmt.training.display import Display
from cmt.training.schedule import Recipe, learning_rate
from cmt.training.starting import channels_last, parameter_groups, resized, start_model
from cmt.training.stopping import StopRequest
from cmt.training.validation import Validation
from cmt.weight_files import save_safetensors, save_torch

SAVE_SECONDS = 120.0
"""Between two saves."""


class Run:
    """The network, its average, the optimiser and the position in the schedule.

    Args:
        source: images to learn from.
        out: the run's folder; a state in it is gone on with.
        init: weights to start from, and which of those in the file.

    Raises:
        InputError: the folder holds another run, or nothing of use.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: ImageSource,
        out: Path,
        init: Path | None = None,
        init_key: str | None = None,
    ) -> None:
        self.recipe, self.source, self.out, self.init = recipe, source, out, init
        self.stage, self.step = 0, 0
        self.left_out: dict[int, str] = {}
        self.outside: dict[int, int] = {}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(recipe.seed)
        self.model = start_model(recipe, init, source.class_names, init_key)
        self.notes = self.model.notes
        self._prepare()
        self.average = copy.deepcopy(self.model)
        self._saved = time.monotonic()
        if self._state.is_file():
            self._restore()

    @property
    def position(self) -> str | None:
        """Where the run goes on, in words; None at its beginning."""
        if (self.stage, self.step) == (0, 0) or self.stage == len(self.recipe.schedule):
            return None
        size, images, batch = self.recipe.schedule[self.stage]
        return f"after {self.step * batch:,} of {images:,} images of size {size}"

    @property
    def _state(self) -> Path:
        return self.out / "state.pt"

    def _prepare(self) -> None:
        channels_last(self.model.to(self.device)).train()
        if self.recipe.freeze:
            for part in (self.model.stem, *self.model.stages[: self.recipe.freeze]):
                part.eval().requires_grad_(False)
        groups = parameter_groups(self.model, self.recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)

    def _identity(self) -> str:
        """What a stopped run must share with the one that goes on from it, but for the schedule."""
        init = None if self.init is None else self.init.name
        content = [asdict(self.recipe), self.source.fingerprint(), init]
        return json.dumps(content)

    def _restore(self) -> None:
        saved = self._read_state()
        self.stage, self.step = self._position(saved)
        self._resize(self.recipe.schedule[self.stage][0])
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])

    def _read_state(self) -> dict[str, Any]:
        try:
            return torch.load(self._state, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for damaged files
            raise InputError(
                f"{self._state} is damaged: remove it, and the run starts anew"
            ) from error

    def _position(self, saved: dict[str, Any]) -> tuple[int, int]:
        """The stage and step of a saved run in this schedule, which may be longer than its own."""
        before, now = json.loads(saved["identity"]), json.loads(self._identity())
        old, new = before[0].pop("schedule"), now[0].pop("schedule")
        if before != now:
            raise InputError(
                f"{self.out} holds a run {_difference(before, now)}: choose another --out"
            )
        stage, step = saved["stage"], saved["step"]
        if stage == len(old):  # a finished run stands behind its last step
            stage -= 1
            step = old[stage][1] // old[stage][2]
        size, _, batch = old[stage]
        fits = len(new) > stage and new[:stage] == old[:stage] and new[stage][::2] == [size, batch]
        if not fits or new[stage][1] // batch < step:
            done = ",".join(
                ":".join(map(str, row)) for row in [*old[:stage], [size, step * batch, batch]]
            )
            raise InputError(
                f"{self.out} holds a run that has gone through {done}: give a --schedule that "
                "begins with it, or choose another --out"
            )
        return stage, step

    def save(self) -> None:
        """Write RUN/state.pt, replaced whole so that a stop cannot damage it."""
        state = {
            "identity": self._identity(),
            "stage": self.stage,
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        unfinished = self.out / "state.tmp"
        save_torch(state, unfinished)
        unfinished.replace(self._state)
        self._saved = time.monotonic()

    def _grow(self) -> None:
        """Go to the next stage of the schedule; the optimiser starts anew."""
        self.stage, self.step = self.stage + 1, 0
        if self.stage < len(self.recipe.schedule):
            self._resize(self.recipe.schedule[self.stage][0])

    def _resize(self, size: int) -> None:
        self.model = resized(self.model, size)
        self.average = resized(self.average, size).to(self.device)
        self._prepare()

    def train(
        self,
        display: Display,
        validation: Validation | None = None,
        save_seconds: float = SAVE_SECONDS,
    ) -> None:
        """Run the schedule to its end from wherever it stands.

        Raises:
            KeyboardInterrupt: it was told to stop, by SIGINT or SIGTERM; its state is saved.
        """
        with StopRequest() as stop:
            while self.stage < len(self.recipe.schedule):
                self._train_stage(display, validation, save_seconds, stop)
                self._grow()
                self.save()
                stop.heed()

    def _train_stage(
        self,
        display: Display,
        validation: Validation | None,
        save_seconds: float,
        stop: StopRequest,
    ) -> None:
        size, images, batch = self.recipe.schedule[self.stage]
        steps = images // batch
        title = f"size {size}"
        display.task(title, steps, self.step)
        start = sum(n for _, n, _ in self.recipe.schedule[: self.stage])
        data = Batches(self.source, self.recipe, size, batch, start, self.left_out, self.outside)
        for x, y in data.ahead(range(self.step, steps)):
            seen = start + self.step * batch
            loss = self._update(x, y, seen, batch)
            self.step += 1
            display.advance(1, f"loss {loss:.3f}")
            if stop.asked or time.monotonic() - self._saved >= save_seconds:
                self.save()
                self._log(size=size, step=self.step, loss=round(loss, 4))
                stop.heed()
            count = len(self.source)
            epoch_ended = seen // count < (seen + batch) // count
            if validation is not None and validation.is_due(epoch_ended):
                self.save()
                self._look(validation, display, stop)
                display.task(title, steps, self.step)

    def _look(self, validation: Validation, display: Display, stop: StopRequest) -> None:
        """Say how the average does on validation images."""

        def advance(images: int) -> None:
            display.advance(images)
            stop.heed()

        display.task("validating", 2 * validation.count)
        found = validation.look(self.average, advance)
        size, images, batch = self.recipe.schedule[self.stage]
        display.say(
            f"top-1 {found.top1:.2f} % of {found.images:,} validation images, size {size}, after "
            f"{self.step * batch:,} of {images:,} images"
        )
        self._log(size=size, step=self.step, top1=round(found.top1, 2), images=found.images)

    def _log(self, **values: float) -> None:
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(values) + "\n")

    def warnings(self) -> list[str]:
        """What was left out of the images, or clipped in them."""
        keys = {self.source.key(index): count for index, count in self.outside.items()}
        lines = clipped("training", self.source.image_range, keys)
        if self.left_out:
            first = next(iter(self.left_out.values()))
            lines.append(
                f"{len(self.left_out)} training image(s) could not be decoded and were left out, "
                f"first {first}"
            )
        return lines

    def _update(self, x: Tensor, y: Tensor, seen: int, batch: int) -> float:
        in_stage = self.step * batch
        share = self.recipe.share(self.stage, in_stage)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, share, batch)
        x, y = x.to(self.device, memory_format=torch.channels_last), y.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            logits = self.model(x)
        loss = torch.nn.functional.cross_entropy(
            logits.float(), y, label_smoothing=self.recipe.label_smoothing
        )
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        # A short horizon at first, or the average would keep the initial weights for long.
        decay = math.exp(-batch / min(self.recipe.ema_horizon, seen / 4 + batch))
        self._average(1 - decay)
        return float(loss.detach())

    @torch.no_grad()
    def _average(self, share: float) -> None:
        """Take this share of the new weights into the average."""
        for mine, new in zip(
            self.average.state_dict().values(), self.model.state_dict().values(), strict=True
        ):
            if mine.is_floating_point():
                mine.lerp_(new, share)
            else:
                mine.copy_(new)


def _difference(before: list[Any], now: list[Any]) -> str:
    """In which way two runs' identities differ, in words."""
    old, new = before[0], now[0]
    names = [name for name in new if old.get(name) != new[name]]
    if names:
        name = names[0]
        return f"of another recipe ({name} {old.get(name)}, not {new[name]})"
    return "of other images" if before[1] != now[1] else "from other weights"


def _stated_range(source: ImageSource) -> dict[str, str]:
    return {} if source.image_range is None else {"image_range": json.dumps(source.image_range)}


def write_weights(run: Run, top1: str, path: Path) -> None:
    """The average in half precision, public layout, with all that using it takes."""
    size = run.recipe.schedule[-1][0]
    metadata = {
        "family": run.average.family.name,
        "variant": run.recipe.variant,
        "image_size": str(size),
        "num_classes": str(run.average.num_classes),
        "labels": json.dumps(run.source.class_names),
        "resize": str(round(size * run.recipe.resize_ratio)),
        "interpolation": "bicubic",
        "mean": json.dumps(IMAGENET_MEAN),
        "std": json.dumps(IMAGENET_STD),
        **_stated_range(run.source),
        "trained_on": run.source.description,
        "started_from": "random weights" if run.init is None else run.init.name,
        "recipe": json.dumps(asdict(run.recipe)),
        "top1": top1,
    }
    state = {
        name: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in to_public_layout(run.average).items()
    }
    unfinished = path.with_suffix(".tmp")
    save_safetensors(state, unfinished, metadata)
    unfinished.replace(path)
