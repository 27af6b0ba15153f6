"""How the ranges of a recipe are chosen, and whether fitted weights are taken: what has the least
error on held-out images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from cmt.quantize.ranges import MSE

Fitted = TypeVar("Fitted")


@dataclass(frozen=True)
class Choice(Generic[Fitted]):
    """What had the least error.

    Attributes:
        method: of `quantize.ranges.METHODS`.
        fitted: the weights fitted for its ranges; None where the nearest levels do better.
    """

    method: str
    fitted: Fitted | None
    error: float


def choose(
    methods: Sequence[str],
    judge: Callable[[str, Fitted | None], float],
    fit: Callable[[Sequence[str]], Mapping[str, Fitted]] | None,
) -> Choice[Fitted]:
    """Try all methods with the nearest levels, and the most promising ones with fitted weights.

    Ranges of least squared error suit fitted weights best, unless some channels are far above the
    others; then the method that is best without does (docs/notebook/accuracy.md). Fitted weights
    are taken only where their own error is less than that of everything before.

    Args:
        methods: of choosing ranges, at least one.
        judge: error on held-out images of a method with these weights, None for the nearest levels;
            infinite where answers are no numbers.
        fit: weights for the ranges of each of these methods, by method; None fits none.
    """
    tried = [Choice[Fitted](method, None, judge(method, None)) for method in methods]
    best = min(tried, key=lambda choice: choice.error)
    if fit is None:
        return best
    for method, fitted in fit(list(dict.fromkeys([MSE, best.method]))).items():
        error = judge(method, fitted)
        if error < best.error:
            best = Choice(method, fitted, error)
    return best
