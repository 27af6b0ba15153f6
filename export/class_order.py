"""Classes of folders matched to a network's outputs, and whether the answers agree with that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt.errors import InputError

Labels = NDArray[np.int64]
_FAR_BETTER = 2.0
"""Times as many right answers, of the classes that would change places."""
_SURE = 2.5
"""Standard deviations of chance."""


def match_classes(
    folders: Sequence[str], namings: Sequence[Sequence[str]], num_classes: int
) -> dict[int, int]:
    """Folder index -> class index: by name where the weights name their classes, else sorted order.

    A label such as `T-shirt/top` stands for a folder `T-shirt_top`.

    Args:
        namings: each names all classes; folders follow one of them.

    Raises:
        InputError: a folder stands for no class, or for more than one.
    """
    for names in namings:
        places = _places(names)
        if set(folders) <= places.keys():
            return {i: _only_place(folder, names, places) for i, folder in enumerate(folders)}
    if namings:
        known = _places(namings[0])
        raise InputError(
            f"--val-data has a class folder '{min(set(folders) - known.keys())}', which the "
            "weights do not know: name the folders after their classes "
            f"({', '.join(namings[0][:3])}, ...)"
        )
    if len(folders) != num_classes:
        raise InputError(
            f"--val-data has {len(folders)} class folders ({', '.join(folders[:3])}, ...) but the "
            f"weights have {num_classes} classes: give the images these weights were made for"
        )
    return {i: i for i in range(num_classes)}


def _places(names: Sequence[str]) -> dict[str, list[int]]:
    """Which classes a folder may stand for, by its name."""
    places: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        places.setdefault(name.replace("/", "_"), []).append(i)
    return places


def _only_place(folder: str, names: Sequence[str], places: Mapping[str, list[int]]) -> int:
    first, *others = places[folder]
    if others:
        classes = " and ".join(f"{i} ('{names[i]}')" for i in (first, *others))
        raise InputError(
            f"--val-data's folder '{folder}' may stand for the weights' classes {classes}: give "
            "these different labels in the weights' metadata"
        )
    return first


def order_warning(
    found: NDArray[np.integer[Any]], classes: int, labels: Labels, folders: Sequence[str]
) -> list[str]:
    """A warning where another one-to-one order of the classes fits far better than the assumed.

    Args:
        found: (N,) first answers.
        classes: how many the network has.
        labels: (N,) classes as assumed.
        folders: names of the classes as assumed.
    """
    fitting = np.empty_like(found)
    half = _halves(labels)
    # Chosen on one half and judged on the other: some order fits any answers to few images.
    for part in (half, ~half):
        fitting[~part] = best_order(labels[part], found[part], classes)[labels[~part]]
    moved = fitting != labels
    gained, lost = int((fitting == found)[moved].sum()), int((labels == found)[moved].sum())
    if gained - lost <= _SURE * math.sqrt(gained + lost) or gained < _FAR_BETTER * lost:
        return []
    order = best_order(labels, found, classes)
    first = next((i for i in range(len(folders)) if order[i] != i), 0)
    return [
        f"the weights name no classes, so that folders stand for them in sorted order: "
        f"{_percent(labels == found)} of the answers are right, {_percent(order[labels] == found)} "
        f"if they stood in another (folder '{folders[first]}' for class {order[first]}, not "
        f"{first}): put 'labels' into the weights' metadata, or rename the folders in the "
        "weights' order, such as 000_cat"
    ]


def _percent(right: NDArray[np.bool_]) -> str:
    return f"{100 * right.mean():.1f} %"


def _halves(labels: Labels) -> NDArray[np.bool_]:
    """Every other image of each class."""
    half = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        half[np.flatnonzero(labels == label)[::2]] = True
    return half


def best_order(labels: Labels, answers: NDArray, classes: int) -> NDArray[np.int64]:
    """The class that each label stands for, one to one, by the answers to its images.

    Taken from the most frequent pair on, which comes near the best of all orders and never
    overrates it. Labels without a pair stay what they are where that is free.
    """
    pairs, counts = np.unique(np.stack([labels, answers]), axis=1, return_counts=True)
    order = np.full(classes, -1)
    taken = np.zeros(classes, bool)
    # Where two are as frequent, what was assumed goes first.
    for i in np.lexsort((pairs[0] != pairs[1], -counts)):
        label, answer = pairs[:, i]
        if order[label] < 0 and not taken[answer]:
            order[label], taken[answer] = answer, True
    same = (order < 0) & ~taken
    order[same] = np.flatnonzero(same)
    taken[order[same]] = True
    order[order < 0] = np.flatnonzero(~taken)
    return order
