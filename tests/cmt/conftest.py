"""Checkpoints of a tiny network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor

from cmt.layouts import to_public_layout
from cmt.network import CMT

State = dict[str, Tensor]
MakeTiny = Callable[..., CMT]


@pytest.fixture
def state(make_tiny: MakeTiny) -> State:
    """A tiny official checkpoint: size 64, 5 classes."""
    return to_public_layout(make_tiny("official"))


@pytest.fixture
def flyegle_state(make_tiny: MakeTiny) -> State:
    """A tiny FlyEgle checkpoint: size 64, 5 classes."""
    return to_public_layout(make_tiny("flyegle"))
