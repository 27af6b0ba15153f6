"""Warnings of a run, each by the figure that it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cmt.export.graphs import Candidate
from cmt.export.image_warnings import ENOUGH_IMAGES, FAR, FEW_IMAGES, OUTSIDE, beyond, few_images
from cmt.export.image_warnings import unlike as unlike_warning
from cmt.export.images import LEAST_HELD_OUT, Images
from cmt.export.options import ExportOptions
from cmt.export.pipeline import cpu_warnings, why_no_sensitivity
from cmt.targets.registry import TARGETS

INT8 = Candidate(TARGETS["onnxruntime"], "int8")


@pytest.mark.parametrize(("count", "warned"), [(FEW_IMAGES - 1, True), (FEW_IMAGES, False)])
def test_few_images_are_named_with_what_would_be_enough(count: int, warned: bool) -> None:
    lines = few_images(count)
    assert bool(lines) == warned
    assert all(f"{count} calibration images are few" in line for line in lines)
    assert all(f"give {ENOUGH_IMAGES} or more" in line for line in lines)


def test_the_number_that_is_advised_leaves_enough_when_a_quarter_is_held_out() -> None:
    assert ENOUGH_IMAGES - ENOUGH_IMAGES // 4 >= FEW_IMAGES
    assert ENOUGH_IMAGES >= LEAST_HELD_OUT


@pytest.mark.parametrize(("far", "warned"), [(FAR, False), (FAR + 0.01, True)])
def test_images_of_another_kind_are_named_by_what_differs(far: float, warned: bool) -> None:
    lines = unlike_warning(far, "contrast")
    assert bool(lines) == warned
    assert all("their mean contrast is 0.5 standard deviations away" in line for line in lines)


@pytest.mark.parametrize("recipe", OUTSIDE)
def test_values_beyond_calibration_are_held_to_the_recipes_own_limit(recipe: str) -> None:
    assert beyond(OUTSIDE[recipe], recipe) == []
    (line,) = beyond(2 * OUTSIDE[recipe], recipe)
    assert f"{2e6 * OUTSIDE[recipe]:,.1f} in a million" in line
    assert f"{recipe} recipe" in line


@dataclass
class MadeUpSet:
    """What `Images` asks of a prepared set."""

    digests: list[str]
    skipped: list[str] = field(default_factory=list)

    @property
    def keys(self) -> list[str]:
        return self.digests

    def remarks(self, name: str) -> list[str]:
        return [f"{name}: {key}" for key in self.skipped]

    def __len__(self) -> int:
        return len(self.digests)


def images(**sets: MadeUpSet) -> Images:
    return Images({name.replace("_", "-"): made for name, made in sets.items()})  # type: ignore[misc]


def test_images_that_judge_and_teach_are_counted_by_set() -> None:
    made = images(
        validation=MadeUpSet(["a", "b", "c"]),
        calibration=MadeUpSet(["c", "d"]),
        held_out=MadeUpSet(["e"]),
        fine_tuning=MadeUpSet(["a", "b"]),
    )
    lines = made.warnings()
    assert [line.split(" images")[0] for line in lines] == [
        "1 of the calibration",
        "2 of the fine-tuning",
    ]


def test_what_the_sets_say_of_images_that_they_left_out_is_passed_on() -> None:
    lines = images(validation=MadeUpSet(["a"], ["x/1.jpg", "x/2.jpg"])).warnings()
    assert lines == ["validation: x/1.jpg", "validation: x/2.jpg"]


def test_held_out_images_that_set_ranges_as_well_are_none() -> None:
    few = MadeUpSet(["a", "b"])
    assert images(validation=few, calibration=few, held_out=few).held_out_count == 0
    apart = images(validation=few, calibration=few, held_out=MadeUpSet(["c"]))
    assert apart.held_out_count == 1
    assert images(validation=few).held_out_count == 0


@pytest.mark.parametrize(
    ("flags", "warned"),
    [
        (["avx2"], True),
        (["avx2", "avx_vnni"], False),
        (["avx2", "avx512_vnni"], False),
        ([], False),
    ],
)
def test_a_cpu_that_cuts_off_sums_of_8_bit_products_is_named(
    flags: list[str], warned: bool
) -> None:
    lines = cpu_warnings([INT8], {"cpu_flags": flags})
    assert bool(lines) == warned
    assert all("onnxruntime/int8 may answer better" in line for line in lines)


@pytest.mark.parametrize(
    "candidate", [Candidate(TARGETS["openvino"], "fp16"), Candidate(TARGETS["tensorrt"], "int8")]
)
def test_the_cpu_says_nothing_of_files_that_are_not_its_int8(candidate: Candidate) -> None:
    assert cpu_warnings([candidate], {"cpu_flags": ["avx2"]}) == []


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., ExportOptions]:
    def make(**changes: Any) -> ExportOptions:
        return ExportOptions(variant="ti", targets=("onnxruntime",), out=tmp_path / "b", **changes)

    return make


def test_sensitivity_that_is_not_measured_has_a_reason(
    options: Callable[..., ExportOptions],
) -> None:
    fp32 = Candidate(TARGETS["onnxruntime"], "fp32")
    asked = options(sensitivity=True)
    assert why_no_sensitivity(options(), [INT8]) == "not asked for with --sensitivity"
    assert why_no_sensitivity(asked, [fp32]) == "no INT8 file was asked for"
    features = options(sensitivity=True, output="features")
    assert why_no_sensitivity(features, [INT8]) == "feature maps have no first answer"
    assert why_no_sensitivity(asked, [fp32, INT8]) is None
