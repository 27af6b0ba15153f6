"""A run that is stopped and goes on ends like one that was not; its weights load again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from cmt import FAMILIES, InputError, load_model
from cmt.calib_data.preprocessing import Preprocessing
from cmt.calib_data.sources import FolderImages, ImageSource
from cmt.checkpoints import to_public_layout
from cmt.network import CMT
from cmt.training.recipe import (
    Batches,
    Recipe,
    Run,
    evaluate,
    learning_rate,
    main,
    open_source,
    parse_schedule,
    resized,
    start_model,
    write_weights,
)

# Six steps at size 32, then two at 64.
RECIPE = Recipe("tiny", ((32, 24, 4), (64, 8, 4)), learning_rate=1e-2, resize_ratio=1.25)
NAMES = [f"{name}/{i}.png" for name in ("ant", "bee", "cat") for i in range(4)]


class StoppedError(Exception):
    """The stop of a run."""


class StoppingRun(Run):
    """A run that is stopped before its step number `steps_left`."""

    steps_left = 0

    def _update(self, x: Tensor, y: Tensor, seen: int, batch: int) -> float:
        if self.steps_left == 0:
            raise StoppedError
        self.steps_left -= 1
        return super()._update(x, y, seen, batch)


@pytest.fixture
def images(make_images: Callable[..., Path]) -> FolderImages:
    return FolderImages(make_images(*NAMES))


def new_run(
    source: ImageSource, folder: Path, init: Path | None = None, kind: type[Run] = Run
) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    return kind(RECIPE, source, folder, init)


def assert_same_weights(one: CMT, other: CMT) -> None:
    for key, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[key], rtol=1e-6, atol=1e-7, msg=key)


@pytest.mark.parametrize(("stop_after", "save_every"), [(3, 1), (5, 2), (1, 2), (7, 1)])
def test_a_stopped_run_ends_like_one_that_was_not(
    stop_after: int, save_every: int, tiny: object, images: FolderImages, tmp_path: Path
) -> None:
    whole = new_run(images, tmp_path / "whole")
    start = {key: value.clone() for key, value in whole.model.state_dict().items()}
    whole.train(save_every)
    assert any(
        not torch.equal(start[key], value)
        for key, value in whole.model.state_dict().items()
        if key in start and start[key].shape == value.shape
    )

    first = new_run(images, tmp_path / "stopped", kind=StoppingRun)
    assert isinstance(first, StoppingRun)
    first.steps_left = stop_after
    with pytest.raises(StoppedError):
        first.train(save_every)
    torch.manual_seed(12345)  # another process has another history
    second = new_run(images, tmp_path / "stopped")
    assert second.stage * 6 + second.step == stop_after // save_every * save_every
    second.train(save_every)

    assert_same_weights(second.model, whole.model)
    assert_same_weights(second.average, whole.average)


def test_a_finished_run_opens_again_and_does_nothing(
    tiny: object, images: FolderImages, tmp_path: Path
) -> None:
    run = new_run(images, tmp_path / "run")
    run.train()
    again = new_run(images, tmp_path / "run")
    again.train()
    assert again.stage == 2
    assert_same_weights(again.average, run.average)


def test_the_saved_state_is_plain_data(tiny: object, images: FolderImages, tmp_path: Path) -> None:
    run = new_run(images, tmp_path / "run")
    run.save()
    saved = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert set(saved) == {"identity", "stage", "step", "model", "average", "optimizer"}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["state.pt"]


def test_the_log_has_a_line_for_each_save(
    tiny: object, images: FolderImages, tmp_path: Path
) -> None:
    new_run(images, tmp_path / "run").train(save_every=2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [(line["size"], line["step"]) for line in lines] == [(32, 2), (32, 4), (32, 6), (64, 2)]
    assert all(math.isfinite(line["loss"]) for line in lines)


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
    run.train()
    assert evaluate(run.average, source, Preprocessing((32, 32), (32, 32))) == (100.0, 2)


# Batches


def test_the_same_step_always_gives_the_same_batch(tiny: object, images: FolderImages) -> None:
    every = Batches(images, RECIPE, 32, batch=4, start=8, first=0, count=5)
    later = Batches(images, RECIPE, 32, batch=4, start=8, first=3, count=5)
    assert (len(every), len(later)) == (5, 2)
    assert torch.equal(every[3][0], later[0][0])
    assert torch.equal(every[3][1], later[0][1])
    assert not torch.equal(every[3][0], every[4][0])


def test_an_epoch_shows_every_image_once(tiny: object, images: FolderImages) -> None:
    data = Batches(images, RECIPE, 32, batch=4, start=0, first=0, count=6)
    for epoch in (range(3), range(3, 6)):
        labels = torch.cat([data[i][1] for i in epoch])
        assert labels.bincount().tolist() == [4, 4, 4]


def test_another_seed_gives_other_batches(tiny: object, images: FolderImages) -> None:
    other = Recipe("tiny", RECIPE.schedule, 1e-2, 1.25, seed=1)
    one, two = (Batches(images, r, 32, 4, 0, 0, 1)[0][0] for r in (RECIPE, other))
    assert not torch.equal(one, two)
    assert one.shape == two.shape == (4, 3, 32, 32)


# Learning rate


def test_learning_rate_warms_up_and_then_falls_along_a_cosine() -> None:
    recipe = Recipe("ti", ((64, 100, 1),), learning_rate=1e-3, resize_ratio=1, warm_up=0.1)
    rates = [learning_rate(recipe, share / 100, 64) for share in range(101)]
    assert 0 < rates[0] < 1e-7
    assert rates[5] == pytest.approx(0.5e-3, rel=1e-3)
    assert rates[10] == pytest.approx(1e-3)
    assert rates[55] == pytest.approx(0.5e-3)
    assert rates[32] == pytest.approx(0.5e-3 * (1 + math.cos(math.pi * 22 / 90)))
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_learning_rate_is_linear_in_the_batch() -> None:
    recipe = Recipe("ti", ((64, 100, 1),), learning_rate=1e-3, resize_ratio=1)
    assert learning_rate(recipe, 0.5, 128) == pytest.approx(4 * learning_rate(recipe, 0.5, 32))


def test_share_counts_pixels_over_all_stages() -> None:
    recipe = Recipe("ti", ((32, 400, 4), (64, 100, 4)), 1e-3, 1)
    assert recipe.share(0, 0) == 0
    assert recipe.share(0, 200) == 0.25
    assert recipe.share(0, 400) == recipe.share(1, 0) == 0.5
    assert recipe.share(1, 100) == 1


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
    run.train()
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
    assert evaluate(model, images, prepare, batch=5) == (pytest.approx(100 / 3), len(images))


def test_a_stopped_run_goes_on_with_its_own_recipe_only(
    tiny: object, images: FolderImages, tmp_path: Path
) -> None:
    new_run(images, tmp_path / "run").save()
    other = Recipe("tiny", RECIPE.schedule, 5e-3, 1.25)
    with pytest.raises(InputError, match="another recipe"):
        Run(other, images, tmp_path / "run", None)


def test_an_undecodable_training_image_is_replaced_by_the_next(
    make_images: Callable[..., Path],
) -> None:
    root = make_images("a/0.png", "a/1.png", "b/0.png")
    (root / "a" / "1.png").write_bytes(b"no picture")
    source = FolderImages(root)
    batches = Batches(source, Recipe("ti", ((32, 30, 30),), 1e-3, 1.0), 32, 30, 0, 0, 1)
    _, labels = batches[0]
    assert labels.tolist().count(1) == 20  # b/0 stands in for a/1


def test_what_could_not_be_read_in_training_is_said(
    tiny: object,
    make_images: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = make_images("a/0.png", "b/0.png", "b/1.png")
    Image.new("RGB", (8, 8)).save(root / "a" / "turned.jpg", exif=b"Exif\0\0broken")
    (root / "b" / "1.png").write_bytes(b"no picture")
    recipe = Recipe("tiny", ((32, 8, 4),), learning_rate=1e-2, resize_ratio=1.25)
    (tmp_path / "run").mkdir()
    Run(recipe, FolderImages(root), tmp_path / "run", None).train()
    said = capsys.readouterr().err
    assert "1 training image(s) could not be decoded; others were taken instead: b/1.png" in said
    assert "1 training image(s) have EXIF data that cannot be read" in said
    assert "a/turned.jpg" in said


def test_a_class_without_an_image_cannot_be_trained(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_images("a/0.png", "c/0.png")
    (root / "b").mkdir()
    arguments = ["--data", str(root), "--val", str(root), "--out", str(tmp_path / "run")]
    with pytest.raises(InputError, match=r"1 class folder\(s\) without an image \(b\)"):
        CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["160:100:0", "160:0:1", "160:8:16", "100:64:8", "160", "a:b:c"])
def test_schedule_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_schedule(text)


# The command


@pytest.mark.parametrize("text", ["", "160", "160:10", "160:10:x", "160:10:4:2"])
def test_unreadable_schedules_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="size:images:batch"):
        parse_schedule(text)


def test_schedules_are_read_in_order() -> None:
    assert parse_schedule("64:100:8,160:20:4") == ((64, 100, 8), (160, 20, 4))


def test_training_needs_class_folders(make_images: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="no class folders"):
        open_source(make_images("a.png"), "train")


def test_validation_must_have_the_same_classes(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_images("ant/a.png", "bee/a.png")
    val = make_images("ant/a.png", "cat/a.png", root="val")
    arguments = ["--data", str(data), "--val", str(val), "--out", str(tmp_path / "run")]
    with pytest.raises(InputError, match="same classes"):
        CliRunner().invoke(main, arguments, catch_exceptions=False)


def test_the_command_trains_measures_and_writes_weights(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_images(*NAMES)
    arguments = ["--data", root, "--val", root, "--out", tmp_path / "run", "--schedule", "32:4:2"]
    for _ in range(2):  # a finished run is measured again and not trained again
        result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0
        assert "% on 12 images" in result.output
    model = load_model("ti", tmp_path / "run" / "cmt_ti.safetensors")
    assert (model.img_size, model.num_classes) == ((32, 32), 3)
    assert model.metadata["top1"].endswith(f"% on 12 images of {root}")


def test_frozen_stages_keep_weights_and_statistics(
    tiny: object, images: FolderImages, tmp_path: Path
) -> None:
    recipe = Recipe("tiny", ((32, 16, 4),), 1e-2, 1.0, freeze=1, bf16=True)
    (tmp_path / "run").mkdir()
    run = Run(recipe, images, tmp_path / "run", None)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.train()
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
