"""Exact rewrites for inference: the same function in fewer and cheaper operations.

Constants are computed in float64 and stored as float32. In evaluation mode the logits differ
from the original's by rounding alone (at most 1e-5 of the largest logit). Layers keep their
names, so that a recipe finds the same role in both networks.

What is left of a block: a depthwise convolution, two plain normalisations, attention, and
expansion, depthwise convolution and projection. Linear layers are 1x1 convolutions on maps and
every map is read as tokens through its channels-last order: CPU runtimes keep maps so in memory,
where either view costs nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cmt.errors import InputError
from cmt.network import (
    CMT,
    Attention,
    Block,
    ConvHead,
    Grid,
    InvertedResidualFFN,
    KeyValueReduction,
    PooledHead,
    Stage,
    StemUnit,
)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C), free for a map that lies channels-last in memory.

    `cmt.network`'s goes through (B, C, H * W), which a runtime cannot take as a view of such a map.
    """
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_map(x: Tensor, grid: Grid) -> Tensor:
    """(B, H * W, C) -> (B, C, H, W), the inverse of `to_tokens`."""
    return x.unflatten(1, grid).permute(0, 3, 1, 2)


def on_tokens(norm: nn.Module, x: Tensor) -> Tensor:
    """A normalisation over channels, of a map (B, C, H, W)."""
    return to_map(norm(to_tokens(x)), (x.shape[2], x.shape[3]))


# The algebra: each step maps weights to weights. Weights are (out, in, kh, kw), float64.

Layer = tuple[Tensor, Tensor]
"""Weight and bias of a convolution."""
Affine = tuple[Tensor, Tensor]
"""Scale and shift per channel."""


def as_layer(module: nn.Conv2d | nn.Linear) -> Layer:
    """Weight (out, in, kh, kw) and bias (out), float64; a Linear becomes a 1x1 convolution."""
    weight = module.weight.detach().double()
    if isinstance(module, nn.Linear):
        weight = weight[:, :, None, None]
    bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach().double()
    return weight, bias


def batchnorm_affine(norm: nn.BatchNorm2d) -> Affine:
    """What BatchNorm does in evaluation mode: y = scale * x + shift."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.detach().double() - scale * norm.running_mean.double()


def layernorm_affine(norm: nn.LayerNorm) -> Affine:
    """LayerNorm's scale and shift, behind the plain normalisation."""
    return norm.weight.detach().double(), norm.bias.detach().double()


def fold_backward(layer: Layer, affine: Affine) -> Layer:
    """scale * layer(x) + shift as one layer."""
    (weight, bias), (scale, shift) = layer, affine
    return weight * scale[:, None, None, None], bias * scale + shift


def fold_forward(affine: Affine, layer: Layer) -> Layer:
    """layer(scale * x + shift) as one layer; exact only where the layer pads nothing.

    A depthwise weight (channels, 1, kh, kw) meets its own channel's scale and shift.
    """
    (scale, shift), (weight, bias) = affine, layer
    if weight.shape[1] == 1 and len(scale) == len(weight):
        return weight * scale[:, None, None, None], bias + shift * weight.sum((1, 2, 3))
    return weight * scale[:, None, None], bias + (weight * shift[:, None, None]).sum((1, 2, 3))


def add_identity_tap(layer: Layer) -> Layer:
    """layer(x) + x as one depthwise convolution of odd kernel size: 1 more on each centre."""
    weight, bias = layer
    weight = weight.clone()
    weight[:, 0, weight.shape[2] // 2, weight.shape[3] // 2] += 1
    return weight, bias


def compose(inner: Layer, outer: Layer) -> Layer:
    """outer(inner(x)) as one layer, both 1x1."""
    (weight, bias), (outer_weight, outer_bias) = inner, outer
    matrix = outer_weight[:, :, 0, 0]
    return (matrix @ weight[:, :, 0, 0])[:, :, None, None], matrix @ bias + outer_bias


def fold_queries(q: Layer, k: Layer) -> tuple[Layer, Layer]:
    """One head's scores q(x) . k(y) as x . keys(y) + bias(y), all 1x1.

    They differ by what is the same for every y, which softmax takes out again: k's bias is gone.

    Returns:
        `keys`, with as many outputs as x has channels, and `bias`, with one.
    """
    (weight, shift), (key_weight, _) = q, k
    matrix = torch.cat([weight[:, :, 0, 0], shift[:, None]], 1).T @ key_weight[:, :, 0, 0]
    matrix = matrix[:, :, None, None]
    zeros = matrix.new_zeros(len(matrix))
    return (matrix[:-1], zeros[:-1]), (matrix[-1:], zeros[-1:])


def pad_channels(tensor: Tensor, dimension: int, multiple: int) -> Tensor:
    """Zeros appended along one dimension up to the next multiple."""
    shape = list(tensor.shape)
    shape[dimension] = -shape[dimension] % multiple
    return torch.cat([tensor, tensor.new_zeros(shape)], dimension)


def convolution(layer: Layer, like: nn.Conv2d | None = None, groups: int = 1) -> nn.Conv2d:
    """A float32 convolution with these weights; stride and padding as `like`'s."""
    weight, bias = layer
    stride, padding = (like.stride, like.padding) if like is not None else ((1, 1), (0, 0))
    conv = nn.Conv2d(
        weight.shape[1] * groups,
        len(weight),
        tuple(weight.shape[2:]),  # type: ignore[arg-type]
        stride,  # type: ignore[arg-type]
        padding,  # type: ignore[arg-type]
        groups=groups,
    )
    conv.weight = nn.Parameter(weight.float(), requires_grad=False)
    conv.bias = nn.Parameter(bias.float(), requires_grad=False)
    return conv


def linear(layer: Layer) -> nn.Linear:
    """A float32 Linear from a 1x1 convolution's weights."""
    weight, bias = layer
    module = nn.Linear(weight.shape[1], len(weight))
    module.weight = nn.Parameter(weight[:, :, 0, 0].float(), requires_grad=False)
    module.bias = nn.Parameter(bias.float(), requires_grad=False)
    return module


# The rewritten network


class Activation(nn.Module):
    """GELU (erf), then a scale and a shift per channel where a BatchNorm cannot fold away.

    The shift of a BatchNorm before a padded convolution stays: at the border, the padding's
    zeros do not carry it. `become_hardswish` is for INT8 (`quantize.activation`), no rewrite.
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(self, affine: Affine | None = None) -> None:
        super().__init__()
        for name, value in zip(("scale", "shift"), affine or (None, None), strict=True):
            value = None if value is None else value.float()[:, None, None]
            self.register_buffer(name, value)
        self.function: Callable[[Tensor], Tensor] = nn.functional.gelu

    def become_hardswish(self, scale: Tensor, shift: Tensor) -> None:
        """Compute scale * hardswish(x) + shift (channels,) in place of GELU."""
        scale, shift = scale.float()[:, None, None], shift.float()[:, None, None]
        if self.scale is not None and self.shift is not None:
            scale, shift = self.scale * scale, self.scale * shift + self.shift
        self.scale, self.shift = scale, shift
        self.function = nn.functional.hardswish

    def forward(self, x: Tensor) -> Tensor:
        x = self.function(x)
        if self.scale is not None:
            x = x * self.scale
        return x if self.shift is None else x + self.shift


class InferenceStemUnit(nn.Module):
    """3x3 convolution and activation; the last unit's BatchNorm is in the first stage entry."""

    def __init__(self, unit: StemUnit, last: bool) -> None:
        super().__init__()
        self.conv = convolution(as_layer(unit.conv), like=unit.conv)
        self.activation = Activation(None if last else batchnorm_affine(unit.norm))

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.conv(x))


class PlainNorm(nn.Module):
    """LayerNorm without scale and shift over the channels of tokens (B, N, C)."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.shape, self.eps = norm.normalized_shape, norm.eps

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.layer_norm(tokens, self.shape, eps=self.eps)


class InferenceReduction(nn.Module):
    """Strided convolution of keys and values, plain normalisation in the FlyEgle family."""

    def __init__(self, reduction: KeyValueReduction, norm: Affine) -> None:
        super().__init__()
        layer = fold_forward(norm, as_layer(reduction.conv))
        if isinstance(reduction.norm, nn.BatchNorm2d):
            layer = fold_backward(layer, batchnorm_affine(reduction.norm))
            self.norm = None
        else:
            assert isinstance(reduction.norm, nn.LayerNorm)
            self.norm = PlainNorm(reduction.norm)
        self.conv = convolution(layer, like=reduction.conv, groups=reduction.conv.groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.norm is None else on_tokens(self.norm, x)


class InferenceAttention(nn.Module):
    """LMHSA on maps, with the norm before it; scale and norm are in the weights.

    With one head, as in the first stage, the layers of the queries and of the output move to the
    side of the keys and values, which are far fewer.
    """

    def __init__(self, attention: Attention, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.heads = attention.heads
        self.norm = PlainNorm(norm)
        affine = layernorm_affine(norm)
        before_keys: Affine | None = affine
        self.reduce = None
        if attention.reduce is not None:
            self.reduce = InferenceReduction(attention.reduce, affine)
            reduced = attention.reduce.norm
            before_keys = layernorm_affine(reduced) if isinstance(reduced, nn.LayerNorm) else None
        q, k, v = (as_layer(layer) for layer in (attention.q, attention.k, attention.v))
        if before_keys is not None:
            k, v = fold_forward(before_keys, k), fold_forward(before_keys, v)
        scale = torch.full((len(q[1]),), attention.scale, dtype=torch.float64)
        q = fold_backward(fold_forward(affine, q), (scale, torch.zeros_like(scale)))
        proj = as_layer(attention.proj)
        self.q = self.proj = self.key_bias = None
        if self.heads == 1:
            k, key_bias = fold_queries(q, k)
            # The bias may sit in the values, since the weights of every average sum to 1.
            v = compose(v, proj)
            self.key_bias = convolution(key_bias)
        else:
            self.q, self.proj = convolution(q), linear(proj)
        self.k, self.v = convolution(k), convolution(v)

    def _split(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, heads, H * W, C / heads)."""
        return to_tokens(x).unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _planes(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, heads, C / heads, H * W)."""
        return x.flatten(2).unflatten(1, (self.heads, -1))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (B, C, H, W), bias (heads or 1, N, N / r^2) -> (B, C, H, W)."""
        grid = (x.shape[2], x.shape[3])
        tokens = self.norm(to_tokens(x))
        x = to_map(tokens, grid)
        reduced = x if self.reduce is None else self.reduce(x)
        k, v = self._planes(self.k(reduced)), self._split(self.v(reduced))
        q = tokens.unsqueeze(1) if self.q is None else self._split(self.q(x))
        scores = q @ k + bias
        if self.key_bias is not None:
            scores = scores + self._planes(self.key_bias(reduced))
        mixed = scores.softmax(dim=-1) @ v
        tokens = mixed.transpose(1, 2).flatten(2)
        return to_map(tokens if self.proj is None else self.proj(tokens), grid)


class InferenceFFN(nn.Module):
    """IRFFN on maps, with the norm before it.

    `scaled` keeps what scales the inputs of expansion and projection, for INT8's sake.
    """

    def __init__(
        self, ffn: InvertedResidualFFN, norm: nn.LayerNorm, pad_to: int, scaled: bool = False
    ) -> None:
        super().__init__()
        self.inner_activation = ffn.inner_activation
        self.norm = copy.deepcopy(norm) if scaled else PlainNorm(norm)
        expand = as_layer(ffn.expand)
        if not scaled:
            expand = fold_forward(layernorm_affine(norm), expand)
        inner, outer = batchnorm_affine(ffn.expand_norm), batchnorm_affine(ffn.depthwise_norm)
        depthwise, project = as_layer(ffn.depthwise), as_layer(ffn.project)
        # h + BN(GELU(dw(h))): the shift folds forward, the scale belongs to one summand.
        scale = outer[0] if self.inner_activation or scaled else None
        if not self.inner_activation:
            depthwise = add_identity_tap(depthwise)
        before = outer if scale is None else (torch.ones_like(scale), outer[1])
        project = fold_forward(before, project)
        project = fold_backward(project, batchnorm_affine(ffn.project_norm))

        def pad(values: Tensor, dimension: int = 0) -> Tensor:
            return pad_channels(values, dimension, pad_to)

        self.expand = convolution((pad(expand[0]), pad(expand[1])))
        self.activation = Activation((pad(inner[0]), pad(inner[1])))
        layer = (pad(depthwise[0]), pad(depthwise[1]))
        self.depthwise = convolution(layer, like=ffn.depthwise, groups=len(layer[1]))
        shiftless = None if scale is None else (pad(scale), torch.zeros(1, dtype=torch.float64))
        self.depthwise_activation = Activation(shiftless)
        self.project = convolution((pad(project[0], 1), project[1]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        h = self.activation(self.expand(on_tokens(self.norm, x)))
        d = self.depthwise_activation(self.depthwise(h))
        return self.project(h + d if self.inner_activation else d)


class InferenceBlock(nn.Module):
    """CMT block: three operators, the first with its residual inside."""

    def __init__(self, block: Block, pad_to: int) -> None:
        super().__init__()
        lpu = add_identity_tap(as_layer(block.lpu))
        self.lpu = convolution(lpu, like=block.lpu, groups=block.lpu.groups)
        self.attention = InferenceAttention(block.attention, block.norm1)
        self.ffn = InferenceFFN(block.ffn, block.norm2, pad_to)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.lpu(x)
        x = x + self.attention(x, bias)
        return x + self.ffn(x)


class InferenceEntry(nn.Module):
    """2x2 stride-2 convolution, LayerNorm in the official family."""

    def __init__(self, stage: Stage, before: Affine | None) -> None:
        super().__init__()
        layer = as_layer(stage.entry.conv)
        self.conv = convolution(
            layer if before is None else fold_forward(before, layer), like=stage.entry.conv
        )
        # Its scale and shift stay: the LPU that reads them pads.
        self.norm = copy.deepcopy(stage.entry.norm)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.norm is None else on_tokens(self.norm, x)


class InferenceStage(nn.Module):
    """Stage entry, position biases as constants, blocks."""

    def __init__(self, stage: Stage, before: Affine | None, pad_to: int) -> None:
        super().__init__()
        self.entry = InferenceEntry(stage, before)
        self.biases = nn.ParameterList(
            nn.Parameter(position().detach().clone(), requires_grad=False)
            for position in stage.positions
        )
        self.blocks = nn.ModuleList(
            InferenceBlock(block, pad_to)  # type: ignore[arg-type]
            for block in stage.blocks
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        for i, block in enumerate(self.blocks):
            x = block(x, self.biases[i % len(self.biases)])
        return x


class InferenceHead(nn.Module):
    """Official: 1x1 convolution, SiLU, average pool, classifier. FlyEgle: pool, classifier."""

    def __init__(self, head: ConvHead | PooledHead) -> None:
        super().__init__()
        self.features = None
        classifier = as_layer(head.classifier)
        if isinstance(head, ConvHead):
            features = fold_backward(as_layer(head.features), batchnorm_affine(head.norm))
            self.features = convolution(features)
        else:
            classifier = compose(as_layer(head.features), classifier)
        self.classifier = linear(classifier)

    def forward(self, x: Tensor) -> Tensor:
        if self.features is not None:
            x = nn.functional.silu(self.features(x))
        return self.classifier(x.mean((2, 3)))


class InferenceCMT(nn.Module):
    """`CMT` rewritten; same input, same outputs."""

    def __init__(self, model: CMT, pad_to: int) -> None:
        super().__init__()
        self.variant, self.family = model.variant, model.family
        self.img_size, self.num_classes = model.img_size, model.num_classes
        self.metadata = model.metadata
        units = list(model.stem)
        self.stem = nn.Sequential(
            *(InferenceStemUnit(unit, unit is units[-1]) for unit in units)  # type: ignore[arg-type]
        )
        last_norm = units[-1].norm
        assert isinstance(last_norm, nn.BatchNorm2d)
        self.stages = nn.ModuleList(
            InferenceStage(stage, None if i else batchnorm_affine(last_norm), pad_to)  # type: ignore[arg-type]
            for i, stage in enumerate(model.stages)
        )
        self.head = None if model.head is None else InferenceHead(model.head)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """x (B, 3, H, W), normalised -> logits (B, num_classes) or the four stage maps."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps) if self.head is None else self.head(x)


def rewrite_for_inference(model: CMT, pad_to: int = 1) -> InferenceCMT:
    """The same function for inference alone, in evaluation mode; `model` is left as it is.

    Args:
        model: of either family, any size, with or without its head.
        pad_to: hidden widths of the IRFFN are filled up with zeros to a multiple of this.
            OpenVINO gains nothing from it (CMT-Ti, 8, 16 and 32: 0.99x to 1.00x).

    Raises InputError when pad_to is below 1.
    """
    if pad_to < 1:
        raise InputError(f"pad_to is {pad_to}: give at least 1")
    with torch.no_grad():
        return InferenceCMT(model, pad_to).eval()
