"""Weights, classes and images that do not fit together are refused or warned of, never guessed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cmt import InputError
from cmt.export.class_order import best_order, match_classes, order_warning
from cmt.export.images import select
from cmt.export.inputs import Inputs, resolve
from cmt.export.options import ExportOptions
from cmt.layouts import to_public_layout
from cmt.measure.shards import FileAnswers, merge, reduced
from cmt.network import CMT

MakeTiny = Callable[..., CMT]
MakeImages = Callable[..., Path]


def save(model: CMT, path: Path, **metadata: object) -> Path:
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    save_file({k: v.contiguous() for k, v in to_public_layout(model).items()}, path, texts)
    return path


def inputs(weights: Path, val_data: Path | None = None, **options: object) -> Inputs:
    return resolve(
        ExportOptions("tiny", ("onnxruntime",), weights=weights, val_data=val_data, **options),  # type: ignore[arg-type]
        needs_calibration=False,
    )


# Weights


def test_what_was_done_to_find_the_weights_is_a_warning_of_the_run(
    make_tiny: MakeTiny, make_images: MakeImages, tmp_path: Path
) -> None:
    average, raw = (to_public_layout(make_tiny("official", seed=seed)) for seed in (0, 1))
    path = tmp_path / "timm.pth"
    torch.save({"state_dict": raw, "state_dict_ema": average}, path)
    found = inputs(path, make_images(*(f"{name}/0.png" for name in "abcde")))
    assert [line for line in found.warnings if "'state_dict_ema', not 'state_dict'" in line]
    assert torch.equal(found.model.get_parameter("stem.0.conv.bias"), average["stem_conv1.bias"])
    chosen = inputs(path, weights_key="state_dict")
    assert torch.equal(chosen.model.get_parameter("stem.0.conv.bias"), raw["stem_conv1.bias"])
    assert chosen.warnings == []
    assert chosen.weights_source == f"{path}: state_dict"


def test_a_stated_range_of_images_is_for_all_that_a_run_reads(
    make_tiny: MakeTiny, make_images: MakeImages, tmp_path: Path
) -> None:
    path = save(make_tiny("official"), tmp_path / "w.safetensors", image_range=[0, 1])
    folder = make_images(*(f"{name}/0.png" for name in "abcde"))
    for given, expected in (({}, (0.0, 1.0)), ({"image_range": (0.0, 4095.0)}, (0.0, 4095.0))):
        options = ExportOptions(
            "tiny",
            ("onnxruntime",),
            ("int8",),
            weights=path,
            val_data=folder,
            calib_data=folder,
            qat=1,
            qat_data=folder,
            **given,  # type: ignore[arg-type]
        )
        found = resolve(options, needs_calibration=True)
        assert found.preprocessing.image_range == expected
        sources = (found.validation, found.calibration, found.tuning)
        assert [source and source.image_range for source in sources] == [expected] * 3
        keys = [selection.key for selection in select(found, options, 1).values()]
        assert all(key["preprocessing"]["image_range"] == expected for key in keys)


@pytest.mark.parametrize("weights", [None, "random", "demo"])
def test_a_key_without_a_checkpoint_is_refused(weights: str | None) -> None:
    with pytest.raises(InputError, match="--weights FILE"):
        ExportOptions("ti", ("onnxruntime",), weights=weights, weights_key="ema")


@pytest.mark.parametrize("family", ["official", "flyegle"])
def test_a_classifier_of_one_output_is_refused_unless_features_are_asked_for(
    family: str, make_tiny: MakeTiny, make_images: MakeImages, tmp_path: Path
) -> None:
    path = save(make_tiny(family, num_classes=1), tmp_path / "one.safetensors")
    for images in (None, make_images("a/0.png")):
        with pytest.raises(InputError, match=r"one output.*row of zeros.*--output features"):
            inputs(path, images)
    assert inputs(path, output="features").model.head is None


def test_the_advice_for_one_output_gives_what_sigmoid_gave(make_tiny: MakeTiny) -> None:
    one, two = (make_tiny("official", 32, num_classes=n) for n in (1, 2))
    state = one.state_dict()
    for name in ("head.classifier.weight", "head.classifier.bias"):
        state[name] = torch.cat([torch.zeros_like(state[name]), state[name]])
    two.load_state_dict(state)
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(two(x).softmax(1)[:, 1:], one(x).sigmoid())


@pytest.mark.parametrize(
    ("family", "interpolation"), [("official", "bicubic"), ("flyegle", "bilinear")]
)
def test_images_are_resized_as_the_weights_family_does(
    family: str, interpolation: str, make_tiny: MakeTiny, tmp_path: Path
) -> None:
    path = save(make_tiny(family), tmp_path / "w.safetensors")
    assert inputs(path).preprocessing.interpolation == interpolation


# Folders and classes


def test_folders_follow_one_naming_of_the_classes_exactly() -> None:
    namings = [("T-shirt/top", "crane", "crane", "dog"), ("n1", "n2", "n3", "n4")]
    assert match_classes(("T-shirt_top", "dog"), namings, 4) == {0: 0, 1: 3}
    assert match_classes(("n3", "n2"), namings, 4) == {0: 2, 1: 1}
    assert match_classes(("dog",), namings, 4) == {0: 3}


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (("cat", "cat", "dog"), ("cat", "dog")),
        (("a/b", "a_b", "c"), ("a_b", "c")),
        (("a_b", "a/b"), ("a_b",)),
        (("a/b/c", "a/b_c"), ("a_b_c",)),
    ],
)
def test_a_folder_that_may_stand_for_two_classes_is_refused(
    names: tuple[str, ...], folders: tuple[str, ...]
) -> None:
    with pytest.raises(InputError, match=r"may stand for .* 0 \('.*'\) and 1 \('") as caught:
        match_classes(folders, [names], len(names))
    assert f"'{folders[0]}'" in str(caught.value)


@pytest.mark.parametrize("folder", ["Cat", "cat ", "ca", "a/b"])
def test_a_folder_of_nearly_a_classs_name_is_none(folder: str) -> None:
    with pytest.raises(InputError, match="do not know"):
        match_classes((folder,), [("cat", "a/b")], 2)


def test_equal_labels_of_a_weight_file_are_refused_with_its_folders(
    make_tiny: MakeTiny, make_images: MakeImages, tmp_path: Path
) -> None:
    path = save(make_tiny("official"), tmp_path / "w.safetensors", labels=list("aabcd"))
    with pytest.raises(InputError, match="'a' may stand for"):
        inputs(path, make_images("a/0.png", "b/0.png"))
    assert inputs(path, make_images("b/0.png", "c/0.png", root="other")).label_map == {0: 2, 1: 3}


def test_an_order_is_assumed_only_where_no_names_are_known(
    make_tiny: MakeTiny, make_images: MakeImages, tmp_path: Path
) -> None:
    images = make_images(*(f"{name}/0.png" for name in "abcde"))
    named = save(make_tiny("official"), tmp_path / "named.safetensors", labels=list("edcba"))
    assert inputs(named, images).assumed_order == ()
    unnamed = save(make_tiny("official"), tmp_path / "unnamed.safetensors")
    assert inputs(unnamed, images).assumed_order == tuple("abcde")
    assert inputs(unnamed).assumed_order == ()


@pytest.mark.parametrize("name", ["", "a\nok", "a\x1b[2K", "a\u202eb", "a" * 1001])
def test_class_names_that_no_report_may_show_are_refused_before_any_work(
    make_tiny: MakeTiny, tmp_path: Path, name: str
) -> None:
    path = save(make_tiny("official"), tmp_path / "w.safetensors", labels=[name, *"bcde"])
    with pytest.raises(InputError, match=r"class name .* is no visible line"):
        inputs(path)


# The order that answers speak for


def answered(
    true_order: list[int], per_class: int, right: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a network whose class for folder i is `true_order[i]`, and the folders."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(true_order)), per_class)
    meant = np.array(true_order)[labels]
    wrong = rng.random(len(labels)) >= right
    meant[wrong] = rng.integers(0, len(true_order), wrong.sum())
    logits = rng.normal(0, 0.1, (len(labels), len(true_order)))
    logits[np.arange(len(labels)), meant] += 5
    return logits, labels


def warning(logits: np.ndarray, labels: np.ndarray) -> list[str]:
    classes = logits.shape[1]
    return order_warning(logits.argmax(1), classes, labels, [f"class{i}" for i in range(classes)])


@pytest.mark.parametrize(
    ("true_order", "per_class", "right"),
    [
        ([1, 0, 2], 10, 0.8),
        ([0, 2, 1], 50, 0.7),
        ([1, 0], 20, 0.9),
        ([2, 0, 1, 3, 4, 5, 6, 7, 8, 9], 20, 0.8),
        ([0, 1, 3, 2, *range(4, 100)], 50, 0.75),
        (sorted(range(12), key=str), 10, 0.8),  # as if 10 came before 2
        (list(reversed(range(1000))), 5, 0.8),
    ],
)
def test_another_order_that_fits_far_better_is_warned_of(
    true_order: list[int], per_class: int, right: float
) -> None:
    logits, labels = answered(true_order, per_class, right)
    (line,) = warning(logits, labels)
    assumed = 100 * np.mean(logits.argmax(1) == labels)
    meant = 100 * np.mean(logits.argmax(1) == np.array(true_order)[labels])
    assert f"{assumed:.1f} % of the answers" in line
    assert f"{meant:.1f} % if they stood" in line
    first = next(i for i, place in enumerate(true_order) if place != i)
    assert f"'class{first}' for class {true_order[first]}, not {first}" in line
    assert "\n" not in line


@pytest.mark.parametrize("right", [1.0, 0.8, 0.5, 0.3, 0.0])
@pytest.mark.parametrize(
    ("classes", "per_class"), [(2, 3), (3, 10), (10, 20), (1000, 1), (1000, 5)]
)
def test_an_order_that_is_right_is_not_warned_of(
    classes: int, per_class: int, right: float
) -> None:
    for seed in range(5):
        logits, labels = answered(list(range(classes)), per_class, right, seed)
        assert warning(logits, labels) == []


def test_a_network_that_takes_one_class_for_another_is_not_warned_of() -> None:
    logits, labels = answered(list(range(5)), 40, 0.9)
    logits[labels == 1, 2] += 20  # everything of class 1 for class 2
    assert warning(logits, labels) == []
    logits[:, 3] += 50  # one answer to everything
    assert warning(logits, labels) == []


def test_the_best_order_is_one_to_one_and_leaves_unseen_classes_where_they_can_stay() -> None:
    labels, answers = np.array([0, 0, 1, 1, 1, 4]), np.array([1, 1, 0, 0, 1, 4])
    assert best_order(labels, answers, 6).tolist() == [1, 0, 2, 3, 4, 5]
    assert best_order(np.array([0, 0]), np.array([1, 1]), 3).tolist() == [1, 0, 2]
    assert best_order(np.array([0, 1]), np.array([0, 0]), 2).tolist() == [0, 1]


def test_an_export_warns_of_an_order_that_its_answers_speak_against(
    make_tiny: MakeTiny, make_images: MakeImages, tmp_path: Path
) -> None:
    from cmt.export.pipeline import class_order_warnings, make_plan, start
    from cmt.measure.progress import ProgressBars

    images = make_images(*(f"{name}/{i}.png" for name in "ab" for i in range(10)))
    path = save(make_tiny("official", 32, num_classes=2), tmp_path / "w.safetensors")
    plan = make_plan(ExportOptions("tiny", ("onnxruntime",), weights=path, val_data=images))
    with ProgressBars(False) as progress:
        context = start(plan, tmp_path / "work", progress)
    right = np.eye(2, dtype=np.float32)[context.images.validation.labels]
    every = np.arange(len(right))

    def answers(logits: np.ndarray) -> FileAnswers:
        return merge([reduced([logits], every)], every)

    assert class_order_warnings(context, answers(right)) == []
    (line,) = class_order_warnings(context, answers(1 - right))
    assert "0.0 % of the answers are right, 100.0 % if" in line
