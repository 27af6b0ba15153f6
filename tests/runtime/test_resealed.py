"""Bundles that somebody changed and sealed again: taken or refused alike, and left as they are."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from both_readers import Answer, CppReader, in_python
from resealed_bundles import findings, make, state_of

from cmt.bundle.reader import open_bundle

TAKEN, REFUSED = Answer("accepted"), Answer("refused", "why")


def test_changed_bundles_are_answered_alike(runtime: Path, stored: Path, tmp_path: Path) -> None:
    in_cpp, rng, counts = (
        CppReader(runtime / "tests" / "read_manifests", bounded=runtime.name != "sanitized"),
        random.Random(1),
        Counter(),
    )
    for number in range(60):
        folder = tmp_path / str(number)
        make(stored, folder, rng)
        before = state_of(folder)
        answers = in_python(lambda folder=folder: open_bundle(folder)), in_cpp(folder)
        assert findings(*answers, state_of(folder) != before) == []
        counts[answers[0].what] += 1
    in_cpp.close()
    assert min(counts["accepted"], counts["refused"]) > 5


@pytest.mark.parametrize(
    ("python", "cpp", "written", "expected"),
    [
        (TAKEN, TAKEN, False, []),
        (REFUSED, Answer("refused", "otherwise"), False, []),
        (TAKEN, REFUSED, False, ["disagreement"]),
        (TAKEN, TAKEN, True, ["written"]),
        (Answer("refused", "a\nb"), REFUSED, False, ["not one line"]),
        (Answer("refused", ""), REFUSED, False, ["not one line"]),
        (REFUSED, Answer("crash"), False, ["crash", "disagreement"]),
        (Answer("hang"), REFUSED, False, ["hang", "disagreement"]),
    ],
)
def test_what_is_wrong_is_found(
    python: Answer, cpp: Answer, written: bool, expected: list[str]
) -> None:
    assert findings(python, cpp, written) == expected


def test_whatever_a_reader_raises_is_told_from_a_refusal() -> None:
    assert in_python(lambda: None) == TAKEN
    assert in_python(lambda: {}["x"]) == Answer("crash", "KeyError: 'x'")
