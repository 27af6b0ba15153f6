"""Checkpoint files for tests, and what is expected of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmt import InputError, load_model
from cmt.layouts import to_public_layout
from cmt.network import CMT

State = dict[str, Tensor]


def saved(content: object, folder: Path, name: str = "weights.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def refusal(weights: Path, variant: str = "tiny", **options: Any) -> str:
    """The one-line message with which the weights are refused."""
    with pytest.raises(InputError) as caught:
        load_model(variant, weights, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_holds(model: CMT, state: State) -> None:
    loaded = to_public_layout(model)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def official_checkpoint(state: State, **more: object) -> dict[str, object]:
    """What the authors' training script writes, but for what `more` says."""
    args = argparse.Namespace(model="cmt_ti", lr=6e-4, input_size=160, data_path="/imagenet")
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    return {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"base_values": [6e-4], "t_in_epochs": True},
        "epoch": 299,
        "args": args,
        **more,
    }
