"""JSON that is nearly right: values of another kind, names and entries gone, moved or doubled."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

NASTY: list[Any] = [
    *(None, True, False, "", "x", "\0", "é", "../x", "a" * 300, [], {}, [[]], [0], [0.0, 1.0]),
    *(0, -1, 1, 1.0, 0.5, 2, 3, 4, 32, 1e-300, 1e300, 1e39, 2**31, 2**63, 2**64, 10**30, -(2**63)),
]


def change(value: Any, rng: random.Random, nasty: Sequence[Any] = NASTY) -> None:
    """Change one thing somewhere in a JSON value; `nasty` are what may take a value's place."""
    places: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        item = pending.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item))
        for key in keys:
            places.append((item, key))
            if isinstance(item[key], dict | list):
                pending.append(item[key])
    if not places:
        return
    holder, key = rng.choice(places)
    what = rng.random()
    if what < 0.6:
        alike = [one for one in nasty if type(one) is type(holder[key])]
        chosen = alike if alike and rng.random() < 0.5 else nasty
        holder[key] = copy.deepcopy(rng.choice(chosen))
    elif what < 0.75:
        del holder[key]
    elif what < 0.9:
        other, place = rng.choice(places)
        holder[key] = copy.deepcopy(other[place])
    elif isinstance(holder, dict):
        holder[f"{key}x"] = copy.deepcopy(holder[key])
    else:
        holder.append(copy.deepcopy(holder[key]))
