"""Networks as trained ones are, and how far another computes from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmt.network import CMT, build

LARGEST = 1e-5
"""Largest difference over the largest value that counts as exact in float32."""


def randomise(module: nn.Module) -> None:
    """Statistics and scales far from the identity, as a trained network has them."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.5)
            part.running_var.uniform_(0.2, 3)
        if isinstance(part, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(part.weight, 0.3, 2)
            nn.init.normal_(part.bias, 0, 0.5)
    for name, parameter in module.named_parameters():
        if "table" in name:
            nn.init.normal_(parameter)


def network(variant: str, family: str, size: int | tuple[int, int], features: bool = False) -> CMT:
    torch.manual_seed(0)
    model = build(variant, family, size, num_classes=7, features=features).eval()
    randomise(model)
    return model


def difference(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).abs().max() / theirs.abs().max())


def outputs(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found = model(x)
    return found if isinstance(found, tuple) else (found,)
