"""TensorRT's form of the network computes what the original does."""

from __future__ import annotations

import pytest
import torch
from rewritten import LARGEST, difference, network, outputs
from torch import nn

from cmt.tensor_cores import TILE, fit_tensor_cores


@pytest.mark.parametrize("family", ["official", "flyegle"])
@pytest.mark.parametrize(
    ("variant", "size", "features"),
    [
        ("ti", 160, False),
        ("ti", (96, 64), True),
        ("xs", 64, False),
        ("s", 64, False),
        ("b", 64, False),
    ],
)
def test_every_variant_computes_the_same(
    variant: str, size: int | tuple[int, int], features: bool, family: str
) -> None:
    model = network(variant, family, size, features)
    x = torch.randn(2, 3, *model.img_size)
    fitted = fit_tensor_cores(model, lambda path: path.endswith("project"))
    for ours, theirs in zip(outputs(fitted, x), outputs(model, x), strict=True):
        assert difference(ours, theirs) <= LARGEST


def test_a_single_key_is_not_lost_beside_the_one_that_fills_up() -> None:
    model = network("ti", "official", 32)  # one key for every query
    x = torch.randn(2, 3, 32, 32)
    assert difference(fit_tensor_cores(model)(x), model(x)) <= LARGEST


def test_heads_come_in_tiles_and_fold_where_that_takes_fewer_multiply_adds() -> None:
    model = network("ti", "official", 160)
    layers = {n: m for n, m in fit_tensor_cores(model).named_modules() if "attention" in n}
    folded = {n.split(".")[1] for n in layers if n.endswith(".kv")} - {
        n.split(".")[1] for n in layers if n.endswith(".proj")
    }
    assert folded == {"0", "1"}
    widths = [m.out_features for n, m in layers.items() if n.endswith((".q", ".kv", ".qkv"))]
    assert len(widths) > 10
    assert all(width % TILE == 0 for width in widths)
    assert layers["stages.2.blocks.0.attention.proj"].in_features == 4 * 48


def test_what_int8_quantises_keeps_its_scales_and_becomes_a_product_where_asked() -> None:
    model = network("ti", "official", 64)
    fitted = fit_tensor_cores(model, lambda path: path == "stages.1.blocks.0.ffn.project")
    blocks = [stage.blocks[0] for stage in fitted.stages]
    assert [isinstance(b.ffn.project, nn.Linear) for b in blocks] == [False, True, False, False]
    for block, stage in zip(blocks, model.stages, strict=True):
        assert torch.equal(block.attention.norm.weight, stage.blocks[0].norm1.weight)
        assert torch.equal(block.ffn.norm.weight, stage.blocks[0].norm2.weight)
        assert block.ffn.depthwise_activation.scale is not None
        assert block.ffn.expand.dilation == (2, 2)
