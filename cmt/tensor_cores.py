"""The rewritten network in the form that TensorRT makes the least of: launches, copies, bytes.

Exact, as `cmt.rewrite` is. What is otherwise: channels come in multiples of 16, filled up with
zeros; where that takes fewer multiply-adds, heads' queries and the output projection move to the
side of the keys and values; elsewhere keys and values, or all three, are one layer, and a head's
width is a multiple of 16, so that nothing is copied into one that is. Expansions have a dilation,
which says nothing of a 1x1 kernel, but keeps the builder from turning one of 256 channels or more
into a product in channels-first order, for which the normalisation before it would be turned round
in a launch of its own. Normalisations keep their scales and shifts, and projections get their input
scaled: both cost nothing there, and INT8 needs channels of one size (`quantize.equalise`).

Which form pays was read in the builder's layer record (docs/notebook/tensorrt.md).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cmt.network import CMT, Attention, Grid
from cmt.rewrite import (
    Affine,
    InferenceCMT,
    InferenceFFN,
    InferenceReduction,
    Layer,
    as_layer,
    compose,
    fold_backward,
    fold_forward,
    fold_queries,
    layernorm_affine,
    linear,
    pad_channels,
    rewrite_for_inference,
    to_map,
    to_tokens,
)

TILE = 16
"""Channels that fill a tensor core's tile in INT8, twice what FP16 asks for."""
_STAYS_CONVOLUTION = (2, 2)
"""The dilation of a 1x1 convolution that is to be run as one."""
_NEVER = -1e4
"""The position bias of a key that is none: softmax makes exactly zero of it, and FP16 holds it."""


def fit_tensor_cores(
    model: CMT, is_product: Callable[[str], bool] = lambda _: False
) -> InferenceCMT:
    """The same function for inference with TensorRT, in evaluation mode; `model` stays as it is.

    Args:
        is_product: given a layer's path, whether a 1x1 convolution becomes a product on tokens: in
            INT8, those write FP16, convolutions FP32.
    """
    network = rewrite_for_inference(model, TILE)
    with torch.no_grad():
        stages: Any = zip(network.stages, model.stages, strict=True)
        for stage, given in stages:
            grid, channels = _grid_of(stage), len(given.entry.conv.weight)
            for block, original in zip(stage.blocks, given.blocks, strict=True):
                fold = _folding_pays(original.attention, grid, channels)
                kind = _FoldedAttention if fold else _HeadsAttention
                block.attention = kind(original.attention, original.norm1)
                block.ffn = InferenceFFN(original.ffn, original.norm2, TILE, scaled=True)
                block.ffn.expand.dilation = _STAYS_CONVOLUTION
        for path, module in list(network.named_modules()):
            if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and is_product(path):
                owner, _, name = path.rpartition(".")
                setattr(network.get_submodule(owner), name, _TokenProduct(module))
    return network.eval()


class _TokenProduct(nn.Linear):
    """A 1x1 convolution as a linear layer on the tokens of a map."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.in_channels, conv.out_channels)
        assert conv.bias is not None
        self.weight = nn.Parameter(conv.weight[:, :, 0, 0].clone(), requires_grad=False)
        self.bias = nn.Parameter(conv.bias.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _grid_of(stage: Any) -> tuple[int, int]:
    """Queries and keys of a stage."""
    _, queries, keys = stage.biases[0].shape
    return queries, keys


def _folding_pays(attention: Attention, grid: tuple[int, int], channels: int) -> bool:
    """Whether attention takes fewer multiply-adds with its heads folded."""
    (queries, keys), heads, c = grid, attention.heads, channels
    folded = 2 * queries * keys * heads * c + 2 * keys * heads * c * c
    return folded < 2 * queries * keys * c + 2 * (queries + keys) * c * c


class _Attention(nn.Module):
    """LMHSA on maps, with the norm before it."""

    def __init__(self, attention: Attention, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.heads, self.norm, self.reduce = attention.heads, copy.deepcopy(norm), None
        if attention.reduce is not None:
            scale = norm.weight.detach().double()
            plain = torch.ones_like(scale), torch.zeros_like(scale)
            self.reduce = InferenceReduction(attention.reduce, plain)

    def _tokens(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H, W, C), normalised."""
        return self.norm(x.permute(0, 2, 3, 1))

    def _reduced(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, keys, C)."""
        x = tokens.permute(0, 3, 1, 2)
        return to_tokens(x if self.reduce is None else self.reduce(x))


def _layers(attention: Attention) -> tuple[Layer, Layer, Layer, Layer]:
    """Queries, scaled, keys, values and the output; what a LayerNorm behind the reduction does is
    in the keys and values."""
    q, k, v = (as_layer(layer) for layer in (attention.q, attention.k, attention.v))
    norm = None if attention.reduce is None else attention.reduce.norm
    if isinstance(norm, nn.LayerNorm):
        affine = layernorm_affine(norm)
        k, v = fold_forward(affine, k), fold_forward(affine, v)
    scale: Affine = (torch.full_like(q[1], attention.scale), torch.zeros_like(q[1]))
    return fold_backward(q, scale), k, v, as_layer(attention.proj)


class _FoldedAttention(_Attention):
    """Queries are the tokens themselves: each head has keys and values as wide as a token.

    Softmax is over each head's keys, and one product sums over the heads.
    """

    def __init__(self, attention: Attention, norm: nn.LayerNorm) -> None:
        super().__init__(attention, norm)
        q, k, v, proj = _layers(attention)
        width = len(q[1]) // self.heads
        keys, values, biases = [], [], []
        for start in range(0, len(q[1]), width):
            own = slice(start, start + width)
            key, bias = fold_queries(_rows(q, own), _rows(k, own))
            keys.append(key)
            biases.append(bias)
            # Every head has its share of the bias: the weights of each average sum to 1.
            values.append(compose(_rows(v, own), (proj[0][:, own], proj[1] / self.heads)))
        self.kv = _merged(*keys, *values, *biases, tile=TILE)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (B, C, H, W), bias (heads or 1, N, N / r^2) -> (B, C, H, W)."""
        grid, heads, channels = (x.shape[2], x.shape[3]), self.heads, x.shape[1]
        tokens = self._tokens(x)
        kv, bias = self.kv(self._reduced(tokens)), bias.expand(heads, -1, -1)
        if heads * bias.shape[2] % 2:  # products of odd size would be copied into even ones
            kv, bias = _one_more(kv, 0.0), _one_more(bias.transpose(1, 2), _NEVER).transpose(1, 2)
        both = kv[:, :, : 2 * heads * channels].unflatten(2, (2, heads, channels))
        k, v = both[:, :, 0].permute(0, 3, 2, 1).flatten(2), both[:, :, 1].transpose(1, 2)
        key_bias = kv[:, :, 2 * heads * channels :][:, :, :heads].transpose(1, 2).flatten(1)
        scores = tokens.flatten(1, 2) @ k + key_bias.unsqueeze(1)
        scores = scores + bias.transpose(0, 1).flatten(1)
        weights = scores.unflatten(2, (heads, -1)).softmax(dim=-1).flatten(2)
        return to_map(weights @ v.flatten(1, 2), grid)


def _rows(layer: Layer, rows: slice) -> Layer:
    return layer[0][rows], layer[1][rows]


def _one_more(tokens: Tensor, value: float) -> Tensor:
    """(B, N, C) -> (B, N + 1, C)."""
    return nn.functional.pad(tokens, (0, 0, 0, 1), value=value)


class _HeadsAttention(_Attention):
    """Heads as they are, filled up to whole tiles; `kv`, without reduction `qkv`, is one layer."""

    def __init__(self, attention: Attention, norm: nn.LayerNorm) -> None:
        super().__init__(attention, norm)
        *projections, proj = _layers(attention)
        q, k, v = (self._padded(layer) for layer in projections)
        if self.reduce is None:
            self.qkv = _merged(q, k, v)
        else:
            self.q, self.kv = _merged(q), _merged(k, v)
        weight = pad_channels(proj[0].unflatten(1, (self.heads, -1)), 2, TILE).flatten(1, 2)
        self.proj = linear((weight, proj[1]))

    def _padded(self, layer: Layer) -> Layer:
        weight, bias = (part.unflatten(0, (self.heads, -1)) for part in layer)
        return pad_channels(weight, 1, TILE).flatten(0, 1), pad_channels(bias, 1, TILE).flatten()

    def _split(self, x: Tensor, count: int) -> tuple[Tensor, ...]:
        """(B, N, count * heads * D) -> count of (B, heads, N, D)."""
        return x.unflatten(2, (count, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (B, C, H, W), bias (heads or 1, N, N / r^2) -> (B, C, H, W)."""
        grid: Grid = (x.shape[2], x.shape[3])
        tokens = self._tokens(x)
        if self.reduce is None:
            q, k, v = self._split(self.qkv(tokens).flatten(1, 2), 3)
        else:
            (q,) = self._split(self.q(tokens).flatten(1, 2), 1)
            k, v = self._split(self.kv(self._reduced(tokens)), 2)
        mixed = (q @ k.transpose(2, 3) + bias).softmax(dim=-1) @ v
        return to_map(self.proj(mixed.transpose(1, 2).flatten(2)), grid)


def _merged(*layers: Layer, tile: int = 1) -> nn.Linear:
    """Layers of one input as one, whose outputs are filled up to a multiple of `tile`."""
    weight, bias = (torch.cat(parts) for parts in zip(*layers, strict=True))
    return linear((pad_channels(weight, 0, tile), pad_channels(bias, 0, tile)))
