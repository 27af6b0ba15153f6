"""A run that is stopped and goes on ends like one that was not; its weights load again."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from cmt import FAMILIES, InputError, load_model
from cmt.calib_data.preprocessing import Preprocessing
from cmt.calib_data.sources import FolderImages, ImageSource
from cmt.layouts import to_public_layout
from cmt.network import CMT
from cmt.training.display import Display
from cmt.training.run import SAVE_SECONDS, Run, write_weights
from cmt.training.schedule import Recipe
from cmt.training.starting import resized, start_model
from cmt.training.validation import Accuracy, Validation, evaluate

MadeOnce = Callable[[str, Callable[[Path], object]], Path]
# Six steps at size 32, then two at 64.
RECIPE = Recipe("tiny", ((32, 24, 4), (64, 8, 4)), learning_rate=1e-2, resize_ratio=1.25)
LARGE, SMALL = (64, 8, 4), (32, 24, 4)


class StoppingRun(Run):
    """A run that is told to stop, by such a signal, in its step after `steps_left` others."""

    steps_left = 0
    by = signal.SIGINT
    times = 1

    def _update(self, x: Tensor, y: Tensor, seen: int, batch: int) -> float:
        if self.steps_left == 0:
            for _ in range(self.times):
                signal.raise_signal(self.by)
        self.steps_left -= 1
        return super()._update(x, y, seen, batch)


class KilledRun(StoppingRun):
    """A run that ends in that step, and can do nothing about it."""

    def _update(self, x: Tensor, y: Tensor, seen: int, batch: int) -> float:
        if self.steps_left == 0:
            raise StoppedError
        return super()._update(x, y, seen, batch)


class StoppedError(Exception):
    """The end of a killed run."""


def new_run(
    source: ImageSource,
    folder: Path,
    init: Path | None = None,
    kind: type[Run] = Run,
    recipe: Recipe = RECIPE,
) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    return kind(recipe, source, folder, init)


def stopping(source: ImageSource, folder: Path, steps: int, kind: type[Run] = StoppingRun) -> Run:
    run = new_run(source, folder, kind=kind)
    assert isinstance(run, StoppingRun)
    run.steps_left = steps
    return run


def train(
    run: Run, save_seconds: float = SAVE_SECONDS, validation: Validation | None = None
) -> list[str]:
    """Train to the end; the lines that were shown."""
    lines: list[str] = []
    with Display(lines.append) as display:
        run.train(display, validation, save_seconds)
    return lines


def assert_same_weights(one: CMT, other: CMT) -> None:
    for key, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[key], rtol=1e-6, atol=1e-7, msg=key)


@pytest.fixture
def images(folder: Path, made_once: MadeOnce) -> FolderImages:
    """The same files for every test, for by those a run that was stopped is known."""
    return FolderImages(made_once("training-images", lambda path: shutil.copytree(folder, path)))


@pytest.fixture
def whole(tiny: object, images: FolderImages, made_once: MadeOnce, tmp_path: Path) -> Run:
    """A run that was never stopped, as it is found when it is over."""
    kept = made_once("whole-run", lambda folder: train(new_run(images, folder)))
    return new_run(images, shutil.copytree(kept, tmp_path / "whole"))


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stop_in", [0, 2, 5, 6, 7])
def test_a_run_that_is_told_to_stop_loses_no_step_and_ends_like_one_that_was_not(
    stop_in: int, by: signal.Signals, whole: Run, images: FolderImages, tmp_path: Path
) -> None:
    first = stopping(images, tmp_path / "stopped", stop_in)
    first.by = by  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        train(first)
    torch.manual_seed(12345)  # another process has another history
    second = new_run(images, tmp_path / "stopped")
    assert second.stage * 6 + second.step == stop_in + 1 or stop_in == 7
    train(second)
    assert_same_weights(second.model, whole.model)
    assert_same_weights(second.average, whole.average)


@pytest.mark.parametrize(
    ("killed_in", "save_seconds", "kept"), [(3, 0, 3), (5, 1e9, 0), (7, 1e9, 6)]
)
def test_a_run_that_is_killed_goes_on_from_its_last_save(
    killed_in: int,
    save_seconds: float,
    kept: int,
    whole: Run,
    images: FolderImages,
    tmp_path: Path,
) -> None:
    with pytest.raises(StoppedError):
        train(stopping(images, tmp_path / "killed", killed_in, KilledRun), save_seconds)
    second = new_run(images, tmp_path / "killed")
    assert second.stage * 6 + second.step == kept
    assert (second.position is None) == (kept == 0)
    train(second)
    assert_same_weights(second.average, whole.average)


def test_told_twice_a_run_stops_at_once(tiny: object, images: FolderImages, tmp_path: Path) -> None:
    run = stopping(images, tmp_path / "run", 2)
    run.times = 2  # type: ignore[attr-defined]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(run)
    assert not (tmp_path / "run" / "state.pt").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_learns(whole: Run, images: FolderImages) -> None:
    start = start_model(RECIPE, None, images.class_names).state_dict()
    moved = [not torch.equal(start[key], value) for key, value in whole.model.state_dict().items()]
    assert sum(moved) > len(moved) / 2


def test_a_finished_run_opens_again_and_does_nothing(
    whole: Run, images: FolderImages, tmp_path: Path
) -> None:
    again = new_run(images, tmp_path / "whole")
    train(again)
    assert again.stage == 2
    assert_same_weights(again.average, whole.average)


# A longer schedule


@pytest.mark.parametrize(
    "longer",
    [
        (SMALL, (64, 16, 4)),
        (SMALL, LARGE, (32, 8, 4)),
        (SMALL, LARGE, (96, 4, 2), (32, 4, 4)),
        (SMALL, (64, 11, 4)),  # three images that make no batch
    ],
)
def test_a_finished_run_goes_on_where_its_schedule_is_made_longer(
    longer: tuple[tuple[int, int, int], ...], whole: Run, images: FolderImages, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, schedule=longer)
    longer_run = new_run(images, tmp_path / "whole", recipe=recipe)
    assert (longer_run.stage, longer_run.step) == (1, 2)
    assert_same_weights(longer_run.model, whole.model)
    assert longer_run.position == f"after 8 of {longer[1][1]} images of size 64"
    train(longer_run)
    assert longer_run.stage == len(longer)
    assert longer_run.average.img_size == (longer[-1][0],) * 2
    again = new_run(images, tmp_path / "whole", recipe=recipe)
    train(again)
    assert_same_weights(again.average, longer_run.average)


def test_a_stopped_run_goes_on_with_a_longer_schedule(
    tiny: object, images: FolderImages, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(stopping(images, tmp_path / "run", 2))
    run = new_run(images, tmp_path / "run", recipe=replace(RECIPE, schedule=((32, 40, 4),)))
    assert (run.stage, run.step) == (0, 3)
    train(run)
    assert run.step == 0
    assert run.stage == 1


@pytest.mark.parametrize(
    "other",
    [((32, 20, 4), LARGE), (SMALL,), (SMALL, (64, 4, 4)), (SMALL, (64, 8, 2)), (LARGE, SMALL)],
)
def test_a_schedule_that_does_not_begin_with_what_is_done_is_refused(
    other: tuple[tuple[int, int, int], ...], whole: Run, images: FolderImages, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="gone through 32:24:4,64:8:4: give a --schedule"):
        new_run(images, tmp_path / "whole", recipe=replace(RECIPE, schedule=other))


def test_a_damaged_state_is_refused(tiny: object, images: FolderImages, tmp_path: Path) -> None:
    new_run(images, tmp_path / "run").save()
    state = tmp_path / "run" / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"state\.pt is damaged: remove it"):
        new_run(images, tmp_path / "run")


def test_the_saved_state_is_plain_data(tiny: object, images: FolderImages, tmp_path: Path) -> None:
    run = new_run(images, tmp_path / "run")
    run.save()
    saved = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert set(saved) == {"identity", "stage", "step", "model", "average", "optimizer"}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["state.pt"]


def test_the_log_has_a_line_for_each_save(
    tiny: object, images: FolderImages, tmp_path: Path
) -> None:
    train(new_run(images, tmp_path / "run"), save_seconds=0)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    expected = [(32, step) for step in range(1, 7)] + [(64, 1), (64, 2)]
    assert [(line["size"], line["step"]) for line in lines] == expected
    assert all(math.isfinite(line["loss"]) for line in lines)


def test_accuracy_is_said_while_training_and_changes_nothing(
    whole: Run, images: FolderImages, tmp_path: Path
) -> None:
    run = new_run(images, tmp_path / "run")
    lines = train(run, validation=Eager(images, 1.25))
    looks = [line for line in lines if "top-1" in line]
    assert len(looks) == 2  # epochs end after 12 and 24 images, and after 32 none does
    assert "of 12 validation images, size 32, after 12 of 24 images" in looks[0]
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["images"]) for line in log] == [(3, 12), (6, 12)]
    assert_same_weights(run.average, whole.average)


class Eager(Validation):
    """Always has the time."""

    def is_due(self, epoch_ended: bool) -> bool:
        return epoch_ended


def test_looks_at_the_accuracy_take_a_tenth_of_the_time_at_most(
    images: FolderImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("cmt.training.validation.time.monotonic", lambda: clock[0])

    def slow(*_: object, **__: object) -> Accuracy:
        clock[0] += 60
        return Accuracy(50.0, 12, [])

    monkeypatch.setattr("cmt.training.validation.evaluate", slow)
    validation = Validation(images, 1.0)
    network = start_model(Recipe("ti", (SMALL,), 1e-3, 1.0), None, images.class_names)
    looks = []
    for minute in range(0, 120):
        clock[0] = max(clock[0], 60.0 * minute)
        if validation.is_due(epoch_ended=minute >= 90 or minute % 2 == 0):
            validation.look(network)
            looks.append(minute)
    assert looks[0] == 0
    assert len(looks) == 12
    assert all(later - one >= 10 for one, later in pairwise(looks))


def test_long_epochs_are_looked_at_in_the_middle(images: FolderImages) -> None:
    validation = Validation(images, 1.0)
    assert not validation.is_due(epoch_ended=False)
    validation._last -= 1801
    assert validation.is_due(epoch_ended=False)


def test_a_stop_while_looking_at_the_accuracy_loses_nothing(
    tiny: object, images: FolderImages, tmp_path: Path
) -> None:
    class Stopped(Eager):
        def look(self, model: CMT, advance: Callable[[int], None] = lambda _: None) -> Accuracy:
            signal.raise_signal(signal.SIGTERM)
            return super().look(model, advance)

    run = new_run(images, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(run, validation=Stopped(images, 1.25))
    again = new_run(images, tmp_path / "run")
    assert (again.stage, again.step) == (0, 3)


def test_lines_come_every_ten_seconds_and_say_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr("cmt.training.display.time.monotonic", lambda: clock[0])
    lines: list[tuple[float, str]] = []
    with Display(lambda line: lines.append((clock[0], line))) as display:
        display.task("size 32", 1000, done=100)
        for _ in range(50):
            clock[0] += 0.9
            display.advance(1, "loss 1.000")
    times = [0.0, *(at for at, _ in lines)]
    assert all(0 < later - one <= 10 for one, later in pairwise(times))
    assert len(lines) == 4
    assert lines[0][1] == "size 32: 111 of 1,000, loss 1.000, 1.1 a second, 13 min left"


def test_training_learns_and_the_average_follows(
    tiny: object, make_images: Callable[..., Path], tmp_path: Path
) -> None:
    # Dark and bright pictures: a few steps tell them apart.
    root = make_images("bright/a.png", "dark/a.png")
    Image.new("RGB", (32, 32), (230, 230, 230)).save(root / "bright" / "a.png")
    Image.new("RGB", (32, 32), (20, 20, 20)).save(root / "dark" / "a.png")
    source = FolderImages(root)
    recipe = Recipe("tiny", ((32, 320, 8),), 2e-2, 1.0, ema_horizon=40, erasing=0.0)
    (tmp_path / "run").mkdir()
    run = Run(recipe, source, tmp_path / "run", None)
    train(run)
    assert evaluate(run.average, source, Preprocessing((32, 32), (32, 32))) == Accuracy(
        100.0, 2, []
    )


def test_weight_decay_spares_norms_biases_and_position_tables(
    tiny: object, images: FolderImages, tmp_path: Path
) -> None:
    run = new_run(images, tmp_path / "run")
    decayed, plain = run.optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (RECIPE.weight_decay, 0)
    tables = {id(p) for name, p in run.model.named_parameters() if ".positions." in name}
    assert tables <= {id(p) for p in plain["params"]}
    assert all(p.ndim >= 2 for p in decayed["params"])
    total = len(decayed["params"]) + len(plain["params"])
    assert total == len(list(run.model.parameters()))


# Weights in and out


@pytest.mark.parametrize("family", FAMILIES)
def test_init_keeps_everything_but_the_classifier(
    family: str, make_tiny: Callable[..., CMT], tmp_path: Path
) -> None:
    old = make_tiny(family, 32, num_classes=7)
    save_file(to_public_layout(old), tmp_path / "init.safetensors")
    new = start_model(RECIPE, tmp_path / "init.safetensors", ("ant", "bee", "cat"))
    assert new.family.name == family
    assert new.num_classes == 3
    assert new.state_dict()["head.classifier.weight"].shape[0] == 3
    for key, value in new.state_dict().items():
        if not key.startswith("head.classifier"):
            assert torch.equal(value, old.state_dict()[key]), key


def test_init_at_another_size_resizes_the_tables(
    make_tiny: Callable[..., CMT], tmp_path: Path
) -> None:
    old = make_tiny("official", 96)
    save_file(to_public_layout(old), tmp_path / "init.safetensors")
    new = start_model(RECIPE, tmp_path / "init.safetensors", ("ant", "bee", "cat"))
    assert new.img_size == (32, 32)
    expected = resized(old, 32).state_dict()["stages.0.positions.0.table"]
    assert torch.equal(new.state_dict()["stages.0.positions.0.table"], expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_exported_weights_load_with_their_metadata(
    family: str, make_tiny: Callable[..., CMT], images: FolderImages, tmp_path: Path
) -> None:
    save_file(to_public_layout(make_tiny(family, 32)), tmp_path / "init.safetensors")
    run = new_run(images, tmp_path / "run", tmp_path / "init.safetensors")
    train(run)
    write_weights(run, "33.33 % of something", tmp_path / "out.safetensors")
    model = load_model("tiny", tmp_path / "out.safetensors")
    assert model.family.name == family
    assert (model.img_size, model.num_classes) == ((64, 64), 3)
    assert json.loads(model.metadata["labels"]) == ["ant", "bee", "cat"]
    assert json.loads(model.metadata["recipe"])["schedule"] == [[32, 24, 4], [64, 8, 4]]
    assert model.metadata["top1"] == "33.33 % of something"
    assert model.metadata["started_from"] == "init.safetensors"
    assert Preprocessing.for_model(model.img_size, model.metadata).resize == (80, 80)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, run.average.state_dict()[key].half().to(value.dtype))


def test_evaluate_counts_right_answers(make_tiny: Callable[..., CMT], images: FolderImages) -> None:
    model = make_tiny("official", 32, num_classes=3)
    with torch.no_grad():
        model.get_parameter("head.classifier.weight").zero_()
        model.get_parameter("head.classifier.bias").copy_(torch.tensor([0.0, 1.0, 0.0]))
    prepare = Preprocessing((32, 32), (32, 32))
    found = evaluate(model, images, prepare, batch=5)
    assert (found.top1, found.images) == (pytest.approx(100 / 3), len(images))


def test_a_stopped_run_goes_on_with_its_own_recipe_only(
    tiny: object, images: FolderImages, folder: Path, tmp_path: Path
) -> None:
    new_run(images, tmp_path / "run").save()
    other = Recipe("tiny", RECIPE.schedule, 5e-3, 1.25)
    with pytest.raises(InputError, match=r"another recipe \(learning_rate 0.01, not 0.005\)"):
        Run(other, images, tmp_path / "run", None)
    (folder / "ant" / "0.png").unlink()
    with pytest.raises(InputError, match="of other images"):
        Run(RECIPE, FolderImages(folder), tmp_path / "run", None)


def test_frozen_stages_keep_weights_and_statistics(
    tiny: object, images: FolderImages, tmp_path: Path
) -> None:
    recipe = Recipe("tiny", ((32, 16, 4),), 1e-2, 1.0, freeze=1, bf16=True)
    (tmp_path / "run").mkdir()
    run = Run(recipe, images, tmp_path / "run", None)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    train(run)
    after = run.model.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert not [name for name in moved if name.startswith(("stem.", "stages.0."))]
    assert {"stages.1.entry.conv.weight", "head.classifier.weight"} <= moved


def test_init_of_the_same_classes_keeps_its_classifier(
    make_tiny: Callable[..., CMT], tmp_path: Path
) -> None:
    old = make_tiny("official", 32, num_classes=2)
    labels = ("ant", "bee")
    path = tmp_path / "init.safetensors"
    save_file(to_public_layout(old), path, {"labels": json.dumps(labels)})
    weight = "head.classifier.weight"
    for names, kept in ((labels, True), (("ant", "cat"), False)):
        new = start_model(RECIPE, path, names)
        assert torch.equal(new.state_dict()[weight], old.state_dict()[weight]) == kept
