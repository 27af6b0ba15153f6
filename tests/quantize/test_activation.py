"""The stand-in for GELU follows it where a channel's values lie, and only where it should."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cmt import rewrite_for_inference
from cmt.network import CMT
from cmt.quantize import activation
from cmt.quantize.activation import fit, fit_activations
from cmt.rewrite import Activation


def batches(count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 64, 64, generator=generator) for _ in range(count)]


@pytest.fixture(autouse=True)
def few_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small network's maps as large as the true one's are to what is looked at of them."""
    monkeypatch.setattr(activation, "_FEWEST", 8)
    monkeypatch.setattr(activation, "_SAMPLES", 512)
    monkeypatch.setattr(activation, "_POSITIONS", 600)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).square().mean().sqrt() / theirs.std())


def test_the_fit_follows_gelu_on_narrow_and_wide_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[-3.0], [-1.0], [0.0], [0.5], [2.0]])
    widths = torch.tensor([[1.0], [0.3], [1.0], [0.1], [3.0]])
    x = centres + widths * torch.randn(5, 2000, generator=generator)
    slope, offset, scale, shift = (part[:, None] for part in fit(x, torch.nn.functional.gelu(x)))
    ours = scale * torch.nn.functional.hardswish(slope * x + offset) + shift
    theirs = torch.nn.functional.gelu(x.double())
    for row in range(len(x)):
        assert float((ours[row] - theirs[row]).square().mean().sqrt()) < 0.05


def test_a_channel_that_never_changes_is_met_exactly() -> None:
    x = torch.full((1, 100), 0.7)
    slope, offset, scale, shift = fit(x, torch.nn.functional.gelu(x))
    ours = scale * torch.nn.functional.hardswish(slope * 0.7 + offset) + shift
    assert torch.allclose(ours, torch.nn.functional.gelu(x[:, 0].double()), atol=1e-6)


@pytest.mark.parametrize("family", ["official", "flyegle"])
def test_the_network_stays_close_and_the_stem_keeps_its_gelu(
    tiny_network: Callable[[str], CMT], family: str
) -> None:
    network = rewrite_for_inference(tiny_network(family))
    with torch.no_grad():
        before = network(batches(1)[0])
        fit_activations(network, batches())
        after = network(batches(1)[0])
    assert 0 < relative(after, before) < 0.1
    kept = {
        name
        for name, module in network.named_modules()
        if isinstance(module, Activation) and module.function is torch.nn.functional.gelu
    }
    assert kept == {"stem.0.activation", "stem.1.activation", "stem.2.activation"}


@pytest.mark.parametrize("family", ["official", "flyegle"])
def test_solving_the_projection_takes_error_back(
    tiny_network: Callable[[str], CMT], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    held_out = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    errors = []
    for solve in (lambda layer, given, wanted: None, activation._solve):
        monkeypatch.setattr(activation, "_solve", solve)
        network = rewrite_for_inference(tiny_network(family))
        with torch.no_grad():
            before = network(held_out)
            fit_activations(network, batches(32))
            errors.append(relative(network(held_out), before))
    assert errors[1] < 0.95 * errors[0]
