"""The accuracy gate's answers, on made-up counts of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmt.commands.cmt_export import export_cli
from cmt.export.confirmation import gates
from cmt.export.pipeline import Bundle
from cmt.measure.statistics import images_to_confirm, paired_interval
from cmt.report.document import read_report


def row(lost: int, gained: int, images: int) -> dict[str, Any]:
    low, high = paired_interval(lost, gained, images)
    return {
        "target": "openvino",
        "precision": "int8",
        "accuracy": {
            "drop_pp": 100 * (lost - gained) / images,
            "drop_ci95": [100 * low, 100 * high],
            "images": images,
        },
        "changes": {"lost": lost, "gained": gained},
    }


def unmeasured() -> dict[str, Any]:
    return {**row(0, 0, 1), "accuracy": None}


def test_a_drop_whose_interval_keeps_the_limit_has_passed() -> None:
    found = gates([row(5, 3, 2000)], max_drop=1.0, confirm=True)
    assert (found["passed"], found["failures"], found["unconfirmed"]) == (True, [], [])


def test_a_drop_that_the_images_do_not_confirm_says_how_many_would() -> None:
    found = gates([row(3, 2, 500)], max_drop=0.3, confirm=False)
    assert (found["passed"], found["failures"]) == (True, [])
    (line,) = found["unconfirmed"]
    needed, upper = images_to_confirm(3, 2, 500, 0.003), 100 * paired_interval(3, 2, 500)[1]
    assert "openvino/int8: top-1 drop 0.20 points keeps --max-drop 0.3" in line
    assert f"reaches {upper:.2f}: about {needed:,} validation images" in line


def test_a_drop_that_is_not_confirmed_fails_where_that_is_asked_for() -> None:
    found = gates([row(3, 2, 500)], max_drop=0.3, confirm=True)
    assert (found["passed"], found["unconfirmed"]) == (False, [])
    assert "its interval reaches" in found["failures"][0]


@pytest.mark.parametrize("confirm", [False, True])
def test_a_drop_beyond_the_limit_has_failed_and_is_named_once(confirm: bool) -> None:
    found = gates([row(30, 2, 500), row(0, 0, 5000)], max_drop=0.3, confirm=confirm)
    assert found["passed"] is False
    assert found["failures"] == ["openvino/int8: top-1 drop 5.60 points exceeds --max-drop 0.3"]
    assert found["unconfirmed"] == []


def test_without_labels_nothing_passed_and_nothing_failed() -> None:
    found = gates([unmeasured()], max_drop=0.3, confirm=True)
    assert (found["passed"], found["failures"], found["unconfirmed"]) == (None, [], [])


def test_a_drop_at_the_limit_is_confirmed_by_no_number_of_images() -> None:
    assert images_to_confirm(15, 0, 500, 0.03) is None
    (line,) = gates([row(15, 0, 500)], max_drop=3.0, confirm=False)["unconfirmed"]
    assert "not even ten million images" in line


@pytest.mark.parametrize(
    ("max_drop", "confirm", "passed", "unconfirmed"),
    [
        (100.0, True, True, 0),
        (1.0, False, True, 1),
        (1.0, True, False, 0),
        (-50.0, False, False, 0),
    ],
)
def test_a_real_exports_files_have_the_four_answers(
    bundle: Bundle, max_drop: float, confirm: bool, passed: bool, unconfirmed: int
) -> None:
    """Of 20 images, on which nothing changed: the drop may be anything up to nine points."""
    rows = bundle.report["results"]
    found = gates(rows, max_drop, confirm)
    assert found["passed"] is passed
    assert len(found["unconfirmed"]) == unconfirmed * len(rows)
    assert len(found["failures"]) == (not passed) * len(rows)
    assert all("validation images" in line for line in found["unconfirmed"])


def test_an_export_that_is_to_be_confirmed_fails_and_says_how_many_images_would(
    small: str,
    resumable: Callable[[Path], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = resumable(tmp_path / "out")
    words = [*small.split(), "--target", "openvino", "--max-drop", "1", "--confirm"]
    assert export_cli.main([*words, "--out", str(out)], standalone_mode=False) == 1
    assert "validation images would be likely to confirm it" in capsys.readouterr().err
    assert read_report(out / "report.json")["gates"]["passed"] is False


@pytest.mark.parametrize(
    ("lost", "gained", "images", "limit"),
    [(3, 2, 500, 0.003), (0, 0, 20, 0.01), (12, 9, 2000, 0.005), (30, 45, 1000, 0.01)],
)
def test_four_of_five_sets_of_so_many_images_confirm_it(
    lost: int, gained: int, images: int, limit: float
) -> None:
    count = images_to_confirm(lost, gained, images, limit)
    assert count is not None
    shares = [(lost + 0.5) / (images + 2), (gained + 0.5) / (images + 2)]
    rng = np.random.default_rng(0)
    draws = rng.multinomial(count, [*shares, 1 - sum(shares)], size=10_000)
    confirmed = [paired_interval(int(a), int(b), count)[1] <= limit for a, b, _ in draws]
    assert np.mean(confirmed) == pytest.approx(0.8, abs=0.03)
