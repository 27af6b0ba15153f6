"""Train or fine-tune a CMT classifier: the recipe behind the bundled demo weights.

    cmt-train --data FOLDER --val FOLDER --out RUN [--init WEIGHTS] [...]

FOLDER holds `class/name.jpg`, or Fashion-MNIST's four IDX files. The input size grows along a
schedule such as `64:180000,160:24000` (size:images, in order), position tables resized
bicubically between. AdamW, linear warm-up then cosine over all images, label smoothing,
random resized crop, horizontal flip, random erasing, exponential moving average (EMA) of the
weights. A run stopped at any point goes on from RUN/state.pt with the same command; every
random choice comes from the seed and the step, so that the stop leaves no trace.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image, Resampling
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor

from cmt.calib_data.listing import named
from cmt.calib_data.prepared import open_prepared, prepare
from cmt.calib_data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, to_rgb
from cmt.calib_data.sources import (
    FolderImages,
    IdxImages,
    ImageSource,
    UnreadableImageError,
    load_as,
)
from cmt.checkpoints import load_model, load_state, to_public_layout
from cmt.errors import InputError
from cmt.network import CMT, StageTable, build
from cmt.variants import VARIANTS, parse_size


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome; stored with the run and with the weights."""

    variant: str
    schedule: tuple[tuple[int, int, int], ...]
    """(input size, images, batch size) in order."""
    learning_rate: float
    """Peak, for a batch of 64; scaled linearly with the batch size."""
    resize_ratio: float
    """Evaluation: shorter side resized to this times the input size."""
    min_crop: float = 0.6
    """Smallest share of an image that a random crop keeps."""
    freeze: int = 0
    """The stem and this many stages keep their weights and statistics (0: everything learns)."""
    bf16: bool = False
    """Products in bfloat16, weights and sums in float32; faster where the CPU has it."""
    erasing: float = 0.1
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    ema_horizon: int = 8_000
    """Images after which a weight's share in the average has fallen to 1/e."""
    warm_up: float = 0.03
    seed: int = 0

    @property
    def total_pixels(self) -> int:
        return sum(images * size**2 for size, images, _ in self.schedule)

    def share(self, stage: int, images: int) -> float:
        """How much of the run, counted in pixels, lies before image `images` of a stage."""
        before = sum(n * size**2 for size, n, _ in self.schedule[:stage])
        return (before + images * self.schedule[stage][0] ** 2) / self.total_pixels


def open_source(path: Path, split: str) -> ImageSource:
    """An image folder, or Fashion-MNIST's IDX files for split `train` or `t10k`."""
    images = path / f"{split}-images-idx3-ubyte.gz"
    if images.is_file():
        return IdxImages(images, path / f"{split}-labels-idx1-ubyte.gz", f"Fashion-MNIST {split}")
    source = FolderImages(path)
    if source.labels is None:
        raise InputError(f"{path} has no class folders: expected class/name.jpg")
    return source


def say(lines: Sequence[str]) -> None:
    """Warn of each."""
    for line in lines:
        click.echo(f"warning: {line}", err=True)


def require_all_classes(source: ImageSource) -> None:
    """Raise InputError for a class without an image, which nothing can be learned of."""
    having = set(source.labels or ())
    lacking = [name for i, name in enumerate(source.class_names) if i not in having]
    if lacking:
        raise InputError(
            f"{source.description} has {len(lacking)} class folder(s) without an image "
            f"({named(lacking)}): fill or remove them"
        )


def augment(image: Image, size: int, rng: np.random.Generator, recipe: Recipe) -> NDArray[np.uint8]:
    """Random resized crop, flip and erasing of an RGB image -> (size, size, 3) uint8."""
    area = image.width * image.height * rng.uniform(recipe.min_crop, 1)
    aspect = math.exp(rng.uniform(math.log(4 / 5), math.log(5 / 4)))
    width = min(math.sqrt(area * aspect), image.width)
    height = min(math.sqrt(area / aspect), image.height)
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    box = (left, top, left + width, top + height)
    pixels = np.array(image.resize((size, size), Resampling.BICUBIC, box=box))
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1].copy()
    if rng.random() < recipe.erasing:
        tall, wide = rng.integers(size // 8, size // 2, 2)
        y, x = rng.integers(0, size - tall), rng.integers(0, size - wide)
        pixels[y : y + tall, x : x + wide] = rng.integers(0, 256, (1, 1, 3))
    return pixels


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, 1 << 40, epoch)).permutation(count)


class Batches(torch.utils.data.Dataset):
    """Augmented batches by step number; the same step always gives the same batch."""

    def __init__(
        self,
        source: ImageSource,
        recipe: Recipe,
        size: int,
        batch: int,
        start: int,
        first: int,
        count: int,
    ) -> None:
        self.source, self.recipe, self.size, self.batch = source, recipe, size, batch
        self.start, self.first, self.count = start, first, count
        self.prepare = Preprocessing((size, size), (size, size))
        # Shared, for another process does the reading.
        self.unreadable = torch.zeros(len(source), dtype=torch.bool).share_memory_()
        self.unturned = torch.zeros(len(source), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return self.count - self.first

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        begin = self.start + (self.first + item) * self.batch
        rng = np.random.default_rng((self.recipe.seed, begin))
        drawn = [self._draw(begin + i) for i in range(self.batch)]
        pixels = np.stack([augment(image, self.size, rng, self.recipe) for image, _ in drawn])
        labels = torch.tensor([label for _, label in drawn])
        return torch.from_numpy(self.prepare.normalise(pixels)), labels

    def _draw(self, position: int) -> tuple[Image, int]:
        """An image and its class; the next one in place of one that cannot be decoded."""
        count = len(self.source)
        epoch, place = divmod(position, count)
        start = int(_epoch_order(self.recipe.seed, epoch, count)[place])
        assert self.source.labels is not None
        for index in (i % count for i in range(start, start + count)):
            try:
                image, readable = load_as(self.source, index, to_rgb)
            except UnreadableImageError:
                self.unreadable[index] = True
                continue
            self.unturned[index] = not readable
            return image, self.source.labels[index]
        raise InputError(f"no image of {self.source.description} can be decoded")

    def remarks(self) -> list[str]:
        """Lines for people on what could not be read so far."""
        found = (
            ("could not be decoded; others were taken instead", self.unreadable),
            ("have EXIF data that cannot be read, and were taken as upright", self.unturned),
        )
        return [
            f"{int(flags.sum())} training image(s) {what}: "
            + named([self.source.key(int(i)) for i in flags.nonzero()[:, 0]])
            for what, flags in found
            if flags.any()
        ]


def channels_last(model: CMT) -> CMT:
    """The same model, its kernels laid out for the faster convolutions of a CPU."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def resized(model: CMT, size: int) -> CMT:
    """The same weights at another square input size."""
    fresh = build(model.variant.name, model.family.name, size, model.num_classes)
    load_state(fresh, to_public_layout(model), model.img_size[0])
    return channels_last(fresh)


def start_model(recipe: Recipe, init: Path | None, labels: Sequence[str]) -> CMT:
    """A fresh network, or one with the weights of `init`.

    Its classifier is replaced unless its metadata names the very same classes.
    """
    classes = len(labels)
    size = recipe.schedule[0][0]
    if init is None:
        model = build(recipe.variant, "official", size, classes)
        for module in model.modules():
            if isinstance(module, StageTable):
                torch.nn.init.trunc_normal_(module.table, std=0.02)
        return model
    source = load_model(recipe.variant, init)
    model = build(recipe.variant, source.family.name, source.img_size[0], classes)
    same = source.metadata.get("labels") == json.dumps(labels)
    kept = {
        name: value
        for name, value in source.state_dict().items()
        if same or not name.startswith("head.classifier")
    }
    model.load_state_dict(kept, strict=False)
    return resized(model, size)


def parameter_groups(model: CMT, weight_decay: float) -> list[dict]:
    """Weight decay on matrices and kernels only, as is usual for transformers."""
    decayed: list[torch.nn.Parameter] = []
    plain: list[torch.nn.Parameter] = []
    learning = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
    for name, parameter in learning:
        (plain if parameter.ndim < 2 or ".positions." in name else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def learning_rate(recipe: Recipe, share: float, batch: int) -> float:
    """Linear warm-up, then a cosine to zero, over the share of all pixels seen."""
    peak = recipe.learning_rate * batch / 64
    if share < recipe.warm_up:
        return peak * (share + 1e-6) / recipe.warm_up
    progress = (share - recipe.warm_up) / (1 - recipe.warm_up)
    return peak * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))


class Run:
    """One training run in a folder: the network, its average, the optimiser, the position."""

    def __init__(self, recipe: Recipe, source: ImageSource, out: Path, init: Path | None) -> None:
        self.recipe, self.source, self.out, self.init = recipe, source, out, init
        self.stage, self.step = 0, 0
        torch.manual_seed(recipe.seed)
        self.model = start_model(recipe, init, source.class_names)
        self._prepare()
        self.average = copy.deepcopy(self.model)
        if (out / "state.pt").is_file():
            self._restore()

    def _prepare(self) -> None:
        channels_last(self.model).train()
        if self.recipe.freeze:
            for part in (self.model.stem, *self.model.stages[: self.recipe.freeze]):
                part.eval().requires_grad_(False)
        groups = parameter_groups(self.model, self.recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)

    def _identity(self) -> str:
        """What a stopped run must share with the one that goes on from it."""
        init = None if self.init is None else self.init.name
        content = [asdict(self.recipe), self.source.fingerprint(), init]
        return json.dumps(content)

    def _restore(self) -> None:
        saved = torch.load(self.out / "state.pt", weights_only=True)
        if saved["identity"] != self._identity():
            raise InputError(
                f"{self.out} holds a run with another recipe or other images: choose another --out"
            )
        self.stage, self.step = saved["stage"], saved["step"]
        # A finished run stands behind the last stage.
        size = self.recipe.schedule[min(self.stage, len(self.recipe.schedule) - 1)][0]
        self.model, self.average = resized(self.model, size), resized(self.average, size)
        self._prepare()
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])

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
        torch.save(state, self.out / "state.tmp")
        (self.out / "state.tmp").replace(self.out / "state.pt")

    def grow(self) -> None:
        """Go to the next stage of the schedule; the optimiser starts anew."""
        self.stage, self.step = self.stage + 1, 0
        if self.stage < len(self.recipe.schedule):
            size = self.recipe.schedule[self.stage][0]
            self.model, self.average = resized(self.model, size), resized(self.average, size)
            self._prepare()

    def train(self, save_every: int = 100) -> None:
        """Run the schedule to its end from wherever it stands."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns) as progress:
            while self.stage < len(self.recipe.schedule):
                size, images, batch = self.recipe.schedule[self.stage]
                steps = images // batch
                task = progress.add_task(f"size {size}", total=steps, completed=self.step)
                start = sum(n for _, n, _ in self.recipe.schedule[: self.stage])
                data = Batches(self.source, self.recipe, size, batch, start, self.step, steps)
                loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=1)
                for x, y in loader:
                    loss = self._update(x, y, start + self.step * batch, batch)
                    self.step += 1
                    progress.update(task, advance=1, description=f"size {size} loss {loss:.3f}")
                    if self.step % save_every == 0:
                        self.save()
                        line = {"size": size, "step": self.step, "loss": round(loss, 4)}
                        with (self.out / "log.jsonl").open("a") as log:
                            log.write(json.dumps(line) + "\n")
                say(data.remarks())
                self.grow()
                self.save()

    def _update(self, x: Tensor, y: Tensor, seen: int, batch: int) -> float:
        in_stage = self.step * batch
        share = self.recipe.share(self.stage, in_stage)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, share, batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bf16):
            logits = self.model(x.to(memory_format=torch.channels_last))
        loss = torch.nn.functional.cross_entropy(
            logits.float(), y, label_smoothing=self.recipe.label_smoothing
        )
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        # A short horizon at first, or the average would keep the initial weights for long.
        decay = math.exp(-batch / min(self.recipe.ema_horizon, seen / 4 + batch))
        with torch.no_grad():
            for mine, new in zip(
                self.average.state_dict().values(), self.model.state_dict().values(), strict=True
            ):
                if mine.is_floating_point():
                    mine.lerp_(new, 1 - decay)
                else:
                    mine.copy_(new)
        return float(loss.detach())


@torch.no_grad()
def evaluate(
    model: CMT, source: ImageSource, preprocessing: Preprocessing, batch: int = 32
) -> tuple[float, int]:
    """Top-1 in percent, and the number of images that could be decoded for it."""
    channels_last(model).eval()
    with tempfile.TemporaryDirectory() as folder:
        prepare(source, preprocessing, Path(folder), count=None, seed=0)
        images = open_prepared(Path(folder), preprocessing)
        say(images.remarks("validation"))
        tensors = (torch.from_numpy(x) for x in images.batches(batch))
        answers = [model(x.to(memory_format=torch.channels_last)).argmax(1) for x in tensors]
    right = torch.cat(answers)[: len(images)].numpy() == images.labels
    return 100 * float(right.mean()), len(images)


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
        "trained_on": run.source.description,
        "started_from": "random weights" if run.init is None else run.init.name,
        "recipe": json.dumps(asdict(run.recipe)),
        "top1": top1,
    }
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in to_public_layout(run.average).items()
    }
    save_file(state, path, metadata)


def parse_schedule(text: str) -> tuple[tuple[int, int, int], ...]:
    """`size:images:batch,...` -> tuples."""
    try:
        rows = [tuple(int(part) for part in row.split(":")) for row in text.split(",")]
        schedule = tuple((size, images, batch) for size, images, batch in rows)
    except ValueError as error:
        raise InputError(f"schedule '{text}' is not size:images:batch,...") from error
    for size, images, batch in schedule:
        parse_size(size)
        if not 0 < batch <= images:
            raise InputError(f"schedule '{text}': {images} images make no batch of {batch}")
    return schedule


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Training images.")
@click.option("--val", type=click.Path(path_type=Path), required=True, help="Validation images.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--variant", type=click.Choice(list(VARIANTS)), default="ti", show_default=True)
@click.option("--init", type=click.Path(path_type=Path), help="Weights to start from.")
@click.option(
    "--schedule", default="160:100000:32", show_default=True, help="size:images:batch,... in order."
)
@click.option("--learning-rate", default=3e-4, show_default=True, help="Peak, per batch of 64.")
@click.option(
    "--resize-ratio",
    type=click.FloatRange(min=1),
    default=256 / 224,
    help="Evaluation: shorter side / input.",
)
@click.option(
    "--min-crop",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.6,
    show_default=True,
    help="Smallest share of an image that a random crop keeps.",
)
@click.option("--freeze", type=click.IntRange(0, 4), default=0, help="Stem and stages kept fixed.")
@click.option("--bf16", is_flag=True, help="Products in bfloat16.")
@click.option("--seed", default=0, show_default=True)
def main(
    data: Path,
    val: Path,
    out: Path,
    variant: str,
    init: Path | None,
    schedule: str,
    learning_rate: float,
    resize_ratio: float,
    min_crop: float,
    freeze: int,
    bf16: bool,
    seed: int,
) -> None:
    """Train a CMT on a folder of images; stop and go on as you like."""
    recipe = Recipe(
        variant,
        parse_schedule(schedule),
        learning_rate,
        resize_ratio,
        min_crop=min_crop,
        freeze=freeze,
        bf16=bf16,
        seed=seed,
    )
    source, validation = open_source(data, "train"), open_source(val, "t10k")
    if source.class_names != validation.class_names:
        raise InputError(f"{data} and {val} do not have the same classes")
    require_all_classes(source)
    say([*source.remarks, *validation.remarks])
    out.mkdir(parents=True, exist_ok=True)
    run = Run(recipe, source, out, init)
    run.train()
    # What ships is half precision, so that is what is measured.
    path = out / f"cmt_{variant}.safetensors"
    unmeasured = path.with_stem("unmeasured")
    write_weights(run, "not measured", unmeasured)
    model = load_model(variant, unmeasured)
    preprocessing = Preprocessing.for_model(model.img_size, model.metadata)
    top1, count = evaluate(model, validation, preprocessing)
    unmeasured.unlink()
    result = f"{top1:.2f} % on {count} images of {validation.description}"
    write_weights(run, result, path)
    click.echo(f"top-1 {result}; weights in {path}")
