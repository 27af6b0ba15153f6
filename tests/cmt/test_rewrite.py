"""The rewritten network computes what the original does, step by step and as a whole."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rewritten import LARGEST, difference, network, outputs, randomise
from torch import Tensor, nn

from cmt import InputError, rewrite_for_inference
from cmt.rewrite import (
    add_identity_tap,
    as_layer,
    batchnorm_affine,
    compose,
    convolution,
    fold_backward,
    fold_forward,
    fold_queries,
    layernorm_affine,
    linear,
    pad_channels,
)


@pytest.mark.parametrize("family", ["official", "flyegle"])
@pytest.mark.parametrize(
    ("variant", "size"), [("ti", 160), ("ti", (96, 64)), ("xs", 64), ("s", 64), ("b", 64)]
)
@pytest.mark.parametrize("features", [False, True])
def test_every_variant_computes_the_same(
    variant: str, size: int | tuple[int, int], family: str, features: bool
) -> None:
    model = network(variant, family, size, features)
    x = torch.randn(2, 3, *model.img_size)
    rewritten = rewrite_for_inference(model)
    for ours, theirs in zip(outputs(rewritten, x), outputs(model, x), strict=True):
        assert difference(ours, theirs) <= LARGEST


@pytest.mark.parametrize("family", ["official", "flyegle"])
def test_padded_hidden_widths_compute_the_same(family: str) -> None:
    model = network("ti", family, 64)
    x = torch.randn(1, 3, 64, 64)
    rewritten = rewrite_for_inference(model, pad_to=16)
    widths = {m.out_channels for n, m in rewritten.named_modules() if n.endswith("ffn.expand")}
    assert widths == {176, 336, 672, 1328}
    assert difference(rewritten(x), model(x)) <= LARGEST


def test_the_original_is_left_as_it_was() -> None:
    model = network("ti", "official", 64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rewrite_for_inference(model)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("family", ["official", "flyegle"])
def test_nothing_is_shared_with_the_original(family: str) -> None:
    model = network("ti", family, 64)
    own = {value.untyped_storage().data_ptr() for value in model.state_dict().values()}
    rewritten = rewrite_for_inference(model).state_dict()
    shared = [n for n, value in rewritten.items() if value.untyped_storage().data_ptr() in own]
    assert shared == []


def test_no_batchnorm_and_no_scale_of_a_block_norm_is_left() -> None:
    rewritten = rewrite_for_inference(network("ti", "official", 64))
    kinds = Counter(type(module).__name__ for module in rewritten.modules())
    assert kinds["BatchNorm2d"] == 0
    assert kinds["LayerNorm"] == 4  # the stage entries', which a padded convolution reads


def test_a_padding_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="pad_to is 0"):
        rewrite_for_inference(network("ti", "official", 64), pad_to=0)


# One step each


def maps(channels: int = 6) -> Tensor:
    return torch.randn(2, channels, 8, 8)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_a_shortcut_becomes_a_tap() -> None:
    conv, x = nn.Conv2d(6, 6, 3, padding=1, groups=6), maps()
    ours = convolution(add_identity_tap(as_layer(conv)), like=conv, groups=6)
    assert difference(ours(x), conv(x) + x) <= LARGEST


def norm() -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(6).eval()
    randomise(module)
    return module


def test_a_batchnorm_folds_into_the_convolution_before_it() -> None:
    conv, after, x = nn.Conv2d(6, 6, 3, padding=1), norm(), maps()
    ours = convolution(fold_backward(as_layer(conv), batchnorm_affine(after)), like=conv)
    assert difference(ours(x), after(conv(x))) <= LARGEST


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(6, 9, 1), nn.Conv2d(6, 9, 2, 2), nn.Conv2d(6, 6, 2, 2, groups=6)],
    ids=["1x1", "strided", "depthwise"],
)
def test_a_batchnorm_folds_into_the_unpadded_convolution_behind_it(conv: nn.Conv2d) -> None:
    before, x = norm(), maps()
    layer = fold_forward(batchnorm_affine(before), as_layer(conv))
    ours = convolution(layer, like=conv, groups=conv.groups)
    assert difference(ours(x), conv(before(x))) <= LARGEST


def test_a_layernorm_leaves_its_scale_and_shift_to_its_reader() -> None:
    before, reader, x = nn.LayerNorm(6), nn.Linear(6, 4), torch.randn(2, 5, 6)
    randomise(before)
    ours = linear(fold_forward(layernorm_affine(before), as_layer(reader)))
    plain = nn.functional.layer_norm(x, (6,), eps=before.eps)
    assert difference(ours(plain), reader(before(x))) <= LARGEST


def test_two_linear_layers_become_one() -> None:
    inner, outer, x = nn.Linear(6, 20), nn.Linear(20, 3), torch.randn(2, 6)
    ours = linear(compose(as_layer(inner), as_layer(outer)))
    assert difference(ours(x), outer(inner(x))) <= LARGEST


def test_the_step_tests_can_fail() -> None:
    conv, before, x = nn.Conv2d(6, 9, 3, padding=1), norm(), maps()
    layer = fold_forward(batchnorm_affine(before), as_layer(conv))
    assert difference(convolution(layer, like=conv)(x), conv(before(x))) > LARGEST


def test_the_queries_of_one_head_fold_into_its_keys() -> None:
    torch.manual_seed(0)
    q, k = nn.Linear(6, 6).double(), nn.Linear(6, 6).double()
    keys, bias = (convolution(layer).double() for layer in fold_queries(as_layer(q), as_layer(k)))
    x, y = torch.randn(1, 9, 6).double(), torch.randn(1, 4, 6).double()
    y_map = y.transpose(1, 2).unflatten(2, (2, 2))
    theirs = (q(x) @ k(y).transpose(1, 2)).softmax(-1)
    ours = (x @ keys(y_map).flatten(2) + bias(y_map).flatten(2)).softmax(-1)
    assert difference(ours, theirs) < LARGEST


# Any sizes


WIDTHS = st.integers(1, 9)


@settings(max_examples=40, deadline=None)
@given(WIDTHS, WIDTHS, st.integers(1, 3), st.integers(0, 99))
def test_a_batchnorm_folds_backward_at_any_width(
    inner: int, outer: int, kernel: int, seed: int
) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(inner, outer, kernel, padding=kernel // 2).double()
    after = nn.BatchNorm2d(outer).eval()
    randomise(after)
    x = torch.randn(2, inner, 5, 4).double()
    ours = convolution(fold_backward(as_layer(conv), batchnorm_affine(after)), like=conv).double()
    assert difference(ours(x), after.double()(conv(x))) <= LARGEST


@settings(max_examples=40, deadline=None)
@given(WIDTHS, WIDTHS, WIDTHS, st.integers(0, 99))
def test_linear_layers_compose_at_any_width(first: int, middle: int, last: int, seed: int) -> None:
    torch.manual_seed(seed)
    inner, outer = nn.Linear(first, middle).double(), nn.Linear(middle, last).double()
    x = torch.randn(4, first).double()
    ours = linear(compose(as_layer(inner), as_layer(outer))).double()
    assert difference(ours(x), outer(inner(x))) <= LARGEST


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(1, 7))
def test_padding_adds_zeros_up_to_a_multiple_and_changes_nothing(
    shape: list[int], multiple: int
) -> None:
    tensor = torch.rand(shape) + 1
    for dimension, size in enumerate(shape):
        padded = pad_channels(tensor, dimension, multiple)
        assert padded.shape[dimension] == -(-size // multiple) * multiple
        assert torch.equal(padded.narrow(dimension, 0, size), tensor)
        assert not padded.narrow(dimension, size, padded.shape[dimension] - size).any()
