"""CMT as published, for both checkpoint families (arXiv 2107.06263, section 3).

Feature maps are (batch, channels, height, width); tokens are (batch, height * width,
channels), row-major. Everything is float32 unless the caller casts it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cmt.errors import InputError
from cmt.variants import (
    HEAD_WIDTH,
    HEADS,
    REDUCTIONS,
    STRIDES,
    Family,
    Variant,
    get_family,
    get_variant,
    parse_size,
)

Grid = tuple[int, int]


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, grid: Grid) -> Tensor:
    """(B, H * W, C) -> (B, C, H, W)."""
    return x.transpose(1, 2).unflatten(2, grid)


class StemUnit(nn.Module):
    """3x3 convolution, GELU (erf), BatchNorm (section 3.1)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(nn.functional.gelu(self.conv(x)))


class StageEntry(nn.Module):
    """2x2 stride-2 convolution that halves the map, then LayerNorm in the official family."""

    def __init__(self, in_channels: int, out_channels: int, normalise: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 2, 2)
        self.norm = nn.LayerNorm(out_channels) if normalise else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.norm is None:
            return x
        grid = (x.shape[2], x.shape[3])
        return to_map(self.norm(to_tokens(x)), grid)


class StageTable(nn.Module):
    """Position bias of the official family: (heads, queries, keys), one per stage."""

    def __init__(self, grid: Grid, reduction: int, heads: int) -> None:
        super().__init__()
        queries = grid[0] * grid[1]
        self.table = nn.Parameter(torch.zeros(heads, queries, queries // reduction**2))

    def forward(self) -> Tensor:
        return self.table


class RelativeTable(nn.Module):
    """Position bias of the FlyEgle family: (1, queries, keys) from a (2H-1, 2W-1) table.

    Entry `table[dy + H - 1, dx + W - 1]` with d = position(key) - position(query) over the
    full grid; the reduced keys read the first columns, as that implementation does.
    """

    index: Tensor

    def __init__(self, grid: Grid, reduction: int) -> None:
        super().__init__()
        height, width = grid
        self.table = nn.Parameter(torch.zeros(2 * height - 1, 2 * width - 1))
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        y, x = y.flatten(), x.flatten()
        keys = height * width // reduction**2
        dy = y[None, :keys] - y[:, None] + height - 1
        dx = x[None, :keys] - x[:, None] + width - 1
        self.register_buffer("index", dy * (2 * width - 1) + dx, persistent=False)

    def forward(self) -> Tensor:
        return self.table.flatten()[self.index][None]


class KeyValueReduction(nn.Module):
    """Strided convolution and norm that shorten the keys and values (equation 2)."""

    def __init__(self, dim: int, reduction: int, dense: bool) -> None:
        super().__init__()
        groups = 1 if dense else dim
        self.conv = nn.Conv2d(dim, dim, reduction, reduction, groups=groups)
        self.norm: nn.Module = nn.LayerNorm(dim) if dense else nn.BatchNorm2d(dim)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        x = self.conv(to_map(tokens, grid))
        if isinstance(self.norm, nn.LayerNorm):
            return self.norm(to_tokens(x))
        return to_tokens(self.norm(x))


class Attention(nn.Module):
    """Lightweight multi-head self-attention, LMHSA (equation 2)."""

    def __init__(self, dim: int, heads: int, reduction: int, family: Family) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.reduce = (
            KeyValueReduction(dim, reduction, family.dense_reduction) if reduction > 1 else None
        )

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def forward(self, tokens: Tensor, grid: Grid, bias: Tensor) -> Tensor:
        """tokens (B, N, C), bias (heads or 1, N, N / r^2) -> (B, N, C)."""
        reduced = tokens if self.reduce is None else self.reduce(tokens, grid)
        q, k, v = self._split(self.q(tokens)), self._split(self.k(reduced)), self.v(reduced)
        scores = (q * self.scale) @ k.transpose(2, 3) + bias
        mixed = scores.softmax(dim=-1) @ self._split(v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class InvertedResidualFFN(nn.Module):
    """IRFFN (equation 4): 1x1 expansion, depthwise 3x3 with a shortcut, 1x1 projection."""

    def __init__(self, dim: int, hidden: int, family: Family) -> None:
        super().__init__()
        self.inner_activation = family.ffn_inner_activation
        self.expand = nn.Conv2d(dim, hidden, 1)
        self.expand_norm = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.depthwise_norm = nn.BatchNorm2d(hidden)
        self.project = nn.Conv2d(hidden, dim, 1)
        self.project_norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        h = self.expand_norm(nn.functional.gelu(self.expand(x)))
        if self.inner_activation:
            h = h + self.depthwise_norm(nn.functional.gelu(self.depthwise(h)))
        else:
            h = self.depthwise_norm(nn.functional.gelu(self.depthwise(h) + h))
        return self.project_norm(self.project(h))


class Block(nn.Module):
    """CMT block: local perception unit, LMHSA and IRFFN, each residual (section 3.2)."""

    def __init__(self, dim: int, hidden: int, heads: int, reduction: int, family: Family) -> None:
        super().__init__()
        self.lpu = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim, eps=family.block_norm_eps)
        self.attention = Attention(dim, heads, reduction, family)
        self.norm2 = nn.LayerNorm(dim, eps=family.block_norm_eps)
        self.ffn = InvertedResidualFFN(dim, hidden, family)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        grid = (x.shape[2], x.shape[3])
        tokens = to_tokens(self.lpu(x) + x)
        tokens = tokens + self.attention(self.norm1(tokens), grid, bias)
        return to_map(tokens, grid) + self.ffn(to_map(self.norm2(tokens), grid))


class Stage(nn.Module):
    """Stage entry, position tables and a run of blocks at one resolution."""

    def __init__(
        self, index: int, in_channels: int, variant: Variant, family: Family, grid: Grid
    ) -> None:
        super().__init__()
        dim, heads, reduction = variant.dims[index], HEADS[index], REDUCTIONS[index]
        hidden = int(dim * variant.ffn_ratio[family.name])
        depth = variant.depths[index]
        self.entry = StageEntry(in_channels, dim, family.entry_norm)
        self.positions = nn.ModuleList(
            [RelativeTable(grid, reduction) for _ in range(depth)]
            if family.block_position
            else [StageTable(grid, reduction, heads)]
        )
        self.blocks = nn.ModuleList(
            Block(dim, hidden, heads, reduction, family) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        biases = [position() for position in self.positions]
        for i, block in enumerate(self.blocks):
            x = block(x, biases[i % len(biases)])
        return x


class ConvHead(nn.Module):
    """Official head: 1x1 convolution to 1280, BatchNorm, SiLU, average pool, classifier."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(dim, HEAD_WIDTH, 1)
        self.norm = nn.BatchNorm2d(HEAD_WIDTH)
        self.classifier = nn.Linear(HEAD_WIDTH, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.norm(self.features(x)))
        return self.classifier(x.mean((2, 3)))


class PooledHead(nn.Module):
    """FlyEgle head: average pool, Linear to 1280, Linear to the classes."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Linear(dim, HEAD_WIDTH)
        self.classifier = nn.Linear(HEAD_WIDTH, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x.mean((2, 3))))


METADATA = "cmt"
"""Where a network's metadata is, in what its `state_dict()` keeps beside the weights."""


class CMT(nn.Module):
    """The classifier, or with `features=True` the backbone of its four stage maps.

    Args:
        variant: row of `cmt.VARIANTS`.
        family: row of `cmt.FAMILIES`.
        img_size: (height, width) in pixels, multiples of 32; position tables fit this size.
        num_classes: width of the logits; of no account with `features`.
        features: return the stage maps (strides 4, 8, 16, 32) in place of the logits.
    """

    def __init__(
        self,
        variant: Variant,
        family: Family,
        img_size: Grid,
        num_classes: int,
        features: bool = False,
    ) -> None:
        super().__init__()
        self.variant, self.family = variant, family
        self.img_size, self.num_classes = img_size, num_classes
        self.metadata: dict[str, str] = {}
        """Text metadata of the checkpoint (labels, preprocessing), empty where it has none."""
        self.notes: tuple[str, ...] = ()
        """A line for each way in which the weights are not just what their file holds."""
        width = variant.stem_width
        self.stem = nn.Sequential(
            StemUnit(3, width, 2), StemUnit(width, width, 1), StemUnit(width, width, 1)
        )
        inputs = (width, *variant.dims[:-1])
        self.stages = nn.ModuleList(
            Stage(i, inputs[i], variant, family, (img_size[0] // stride, img_size[1] // stride))
            for i, stride in enumerate(STRIDES)
        )
        head = PooledHead if family.pool_first else ConvHead
        self.head = None if features else head(variant.dims[-1], num_classes)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Beside torch's versions of modules, which `torch.save` keeps and wrappers hand on.
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]][METADATA] = dict(self.metadata)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """x (B, 3, H, W), normalised -> logits (B, num_classes) or the four stage maps."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps) if self.head is None else self.head(x)


def build(
    variant: str,
    family: str = "official",
    img_size: int | Grid | None = None,
    num_classes: int = 1000,
    features: bool = False,
) -> CMT:
    """A CMT with PyTorch's default initialisation (position tables zero), training mode."""
    row = get_variant(variant)
    size = parse_size(row.img_size if img_size is None else img_size)
    if num_classes < 1 and not features:
        raise InputError(f"{num_classes} classes will not do: give at least 1")
    return CMT(row, get_family(family), size, num_classes, features)


def count_macs(model: nn.Module, img_size: Grid) -> int:
    """Multiply-adds of one image: convolutions, linear layers and attention products."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.parameters()).device
    training = model.training
    model.eval()  # or the image of zeros would enter the BatchNorm statistics
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, *img_size, device=device))
    model.train(training)
    return counter.get_total_flops() // 2
