"""Channels are brought to one size without a change of what the network computes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.hard_cases import make_hostile
from cmt.calib_data.prepared import PreparedImages
from cmt.network import CMT
from cmt.quantize.equalise import Site, equalise, sites
from cmt.quantize.fine_tuning import held_out_error, observe_inputs
from cmt.quantize.ranges import MSE
from cmt.quantize.recipe import EXPLICIT, RECIPES


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def answers(network: CMT, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network(images)  # type: ignore[no-any-return]


def peaks(network: CMT, site: Site, images: Tensor) -> Tensor:
    """The largest magnitudes that the site's INT8 layer is given, by channel."""
    given = []
    hook = site.reader.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    answers(network, images)
    hook.remove()
    axis = given[0].ndim - 1 if isinstance(site.reader, torch.nn.Linear) else 1
    return given[0].abs().movedim(axis, -1).flatten(0, -2).amax(0)


@pytest.mark.parametrize("family", ["official", "flyegle"])
def test_every_channel_gets_the_size_of_the_median_one_and_the_function_stays(
    family: str, tiny_network: Callable[[str], CMT], images: Tensor
) -> None:
    network = tiny_network(family)
    before = answers(network, images)
    medians = [peaks(network, site, images).median() for site in sites(network)]
    equalise(network, [images[:2], images[2:]])
    after = answers(network, images)
    assert (after - before).abs().max() < 1e-5 * before.abs().max()
    for site, median in zip(sites(network), medians, strict=True):
        sizes = peaks(network, site, images)
        torch.testing.assert_close(sizes, median.expand_as(sizes), rtol=1e-3, atol=0)


@pytest.mark.parametrize("hostile_factor", [100.0, 0.01])
def test_channels_scaled_up_or_down_leave_no_trace_in_int8(
    tiny_network: Callable[[str], CMT], noise: PreparedImages, hostile_factor: float
) -> None:
    teacher = tiny_network("official")
    errors = []
    for factor in (1.0, hostile_factor):
        network = copy.deepcopy(teacher)
        make_hostile(network, factor, None)
        for scaled in (False, True):
            if scaled:
                equalise(network, map(torch.from_numpy, noise.batches(4)))
            recipe = RECIPES[EXPLICIT]
            histograms = observe_inputs(network, recipe, noise)
            errors.append(held_out_error(network, teacher, recipe, histograms, noise, MSE))
    ordinary, _, hostile, mended = errors
    assert hostile > 4 * ordinary
    assert mended < 1.2 * ordinary


@pytest.mark.parametrize("size", [0.0, 1e-41, 1e-6])
def test_a_channel_that_is_as_good_as_dead_stays_as_it_is(
    size: float, tiny_network: Callable[[str], CMT], images: Tensor
) -> None:
    network = tiny_network("official")
    block = network.stages[0].blocks[0]
    with torch.no_grad():
        block.norm2.weight[1], block.norm2.bias[1] = 0.0, size
        column = block.ffn.expand.weight[:, 1].clone()
    equalise(network, [images])
    assert block.norm2.bias[1].item() == torch.tensor(size).item()
    assert torch.equal(block.ffn.expand.weight[:, 1], column)


def test_weights_stay_within_fp16_where_most_channels_are_as_good_as_dead(
    tiny_network: Callable[[str], CMT], images: Tensor
) -> None:
    network = tiny_network("official")
    norm = network.stages[0].blocks[0].norm2
    with torch.no_grad():
        norm.weight[1:] = 0.0
        norm.bias[1:] = 1e-9
        before = answers(network, images)
    equalise(network, [images])
    assert (answers(network, images) - before).abs().max() < 1e-5 * before.abs().max()
    largest = max(parameter.abs().max().item() for parameter in network.parameters())
    assert largest < 65504
