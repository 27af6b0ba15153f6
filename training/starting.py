"""The network that learns: fresh or from other weights, at any size, and how it is laid out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from cmt.checkpoints import load_noted, load_state
from cmt.network import CMT, StageTable, build
from cmt.training.schedule import Recipe


def channels_last(model: CMT) -> CMT:
    """The same model, its kernels laid out for the faster convolutions of a CPU."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def resized(model: CMT, size: int) -> CMT:
    """The same weights at another square input size."""
    fresh = build(model.variant.name, model.family.name, size, model.num_classes)
    load_state(fresh, model.state_dict(), model.img_size[0])
    return channels_last(fresh)


def start_model(
    recipe: Recipe, init: Path | None, labels: Sequence[str], init_key: str | None = None
) -> CMT:
    """A fresh network, or one with the weights of `init`.

    Its classifier is replaced unless its metadata names the very same classes. `init_key` is
    `load_model`'s `weights_key`; `notes` are its notes.
    """
    classes = len(labels)
    size = recipe.schedule[0][0]
    if init is None:
        model = build(recipe.variant, "official", size, classes)
        for module in model.modules():
            if isinstance(module, StageTable):
                torch.nn.init.trunc_normal_(module.table, std=0.02)
        return model
    source = load_noted(recipe.variant, init, weights_key=init_key)
    model = build(recipe.variant, source.family.name, source.img_size[0], classes)
    same = source.metadata.get("labels") == json.dumps(labels)
    kept = {
        name: value
        for name, value in source.state_dict().items()
        if same or not name.startswith("head.classifier")
    }
    model.load_state_dict(kept, strict=False)
    start = resized(model, size)
    start.notes = source.notes
    return start


def parameter_groups(model: CMT, weight_decay: float) -> list[dict]:
    """Weight decay on matrices and kernels only, as is usual for transformers."""
    decayed: list[torch.nn.Parameter] = []
    plain: list[torch.nn.Parameter] = []
    learning = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
    for name, parameter in learning:
        (plain if parameter.ndim < 2 or ".positions." in name else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
