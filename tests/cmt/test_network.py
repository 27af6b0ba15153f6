"""The networks are the published ones: sizes, costs, outputs, stage maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cmt import FAMILIES, VARIANTS, InputError, load_model
from cmt.checkpoints import load_state
from cmt.layouts import to_public_layout
from cmt.network import CMT, build, count_macs
from cmt.variants import STRIDES

PARAMETERS = {
    ("official", "ti"): 9_492_426,
    ("official", "xs"): 15_247_208,
    ("official", "s"): 26_256_160,
    ("official", "b"): 45_715_076,
    ("flyegle", "ti"): 11_312_526,
    ("flyegle", "xs"): 18_281_917,
    ("flyegle", "s"): 31_754_121,
    ("flyegle", "b"): 55_616_316,
}
REFERENCE = Path(__file__).parents[1] / "reference"
Layout = Callable[[str], dict[str, Any]]
PAPER_GMACS = {"ti": 0.6, "xs": 1.5, "s": 4.0, "b": 9.3}
NETWORKS = list(PARAMETERS)


def build_shapes(variant: str, family: str) -> CMT:
    """The network without memory for its weights: enough to count and compare shapes."""
    with torch.device("meta"):
        return build(variant, family)


@pytest.mark.parametrize(("family", "variant"), NETWORKS)
def test_parameter_count_is_the_published_one(family: str, variant: str) -> None:
    model = build_shapes(variant, family)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[family, variant]


@pytest.mark.parametrize(("family", "variant"), NETWORKS)
def test_keys_and_shapes_are_those_of_the_published_checkpoint(
    family: str, variant: str, layout: Layout
) -> None:
    published = layout(f"{family}_{variant}")
    state = to_public_layout(build_shapes(variant, family))
    assert {key: list(value.shape) for key, value in state.items()} == published["keys"]
    assert published["parameters"] == PARAMETERS[family, variant]


@pytest.mark.parametrize("variant", VARIANTS)
def test_multiply_adds_round_to_the_papers_figure(variant: str) -> None:
    model = build_shapes(variant, "official")
    gmacs = count_macs(model, model.img_size) / 1e9
    print(f"CMT-{variant}: {gmacs:.3f} G multiply-adds, paper {PAPER_GMACS[variant]}")
    assert round(gmacs, 1) == PAPER_GMACS[variant]


def test_counting_multiply_adds_leaves_the_model_as_it_was(make_tiny: Callable[..., CMT]) -> None:
    model = make_tiny("official").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count_macs(model, model.img_size)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_ti_logits_match_the_original_implementation(
    family: str, layout: Layout, filling: ModuleType, tmp_path: Path
) -> None:
    published = layout(f"{family}_ti")
    save_file(filling.fill(published), tmp_path / "ti.safetensors")
    model = load_model("ti", tmp_path / "ti.safetensors")
    expected = np.load(REFERENCE / f"{family}_ti_logits.npy")
    with torch.no_grad():
        logits = model(filling.image(160)).numpy()
    assert model.img_size == (160, 160)
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("family", "variant"), [n for n in NETWORKS if n[1] != "ti"])
def test_larger_variants_load_a_published_layout_and_run(
    family: str, variant: str, layout: Layout, filling: ModuleType
) -> None:
    published = layout(f"{family}_{variant}")
    model = build(variant, family).eval()
    load_state(model, filling.fill(published), published["image_size"])
    with torch.no_grad():
        logits = model(filling.image(published["image_size"], 1))
    assert logits.shape == (1, 1000)
    assert torch.isfinite(logits).all()
    assert logits.std() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_four_stage_maps_of_the_classifier(
    family: str, make_tiny: Callable[..., CMT], tmp_path: Path
) -> None:
    classifier = make_tiny(family, (64, 96))
    seen: list[torch.Tensor] = []
    for stage in classifier.stages:
        stage.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    trained = make_tiny(family, 64)
    save_file(to_public_layout(trained), tmp_path / "tiny.safetensors")
    path = tmp_path / "tiny.safetensors"
    load_state(classifier, to_public_layout(trained), 64)
    backbone = load_model("tiny", path, (64, 96), features=True)
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        classifier(x)
        maps = backbone(x)
    assert [tuple(m.shape) for m in maps] == [
        (2, width, 64 // stride, 96 // stride)
        for width, stride in zip((8, 16, 32, 64), STRIDES, strict=True)
    ]
    assert STRIDES == (4, 8, 16, 32)
    for mine, hooked in zip(maps, seen, strict=True):
        assert torch.equal(mine, hooked)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_does_not_depend_on_its_batch(family: str, make_tiny: Callable[..., CMT]) -> None:
    # In double: in which order a CPU adds up an image's floats does hang on the batch.
    model = make_tiny(family).double()
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        together, alone = model(x), torch.cat([model(image[None]) for image in x])
    torch.testing.assert_close(together, alone)


def test_families_differ(make_tiny: Callable[..., CMT]) -> None:
    official, flyegle = (make_tiny(family) for family in FAMILIES)
    assert type(official.head) is not type(flyegle.head)
    assert official.stages[0].entry.norm is not None
    assert flyegle.stages[0].entry.norm is None


def test_without_weights_the_variants_own_size_and_imagenets_classes(tiny: object) -> None:
    model = load_model("tiny")
    assert (model.img_size, model.num_classes, model.training) == ((32, 32), 1000, False)
    assert model.family.name == "official"
    assert model.metadata == {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"variant": "xl"}, "ti, xs, s, b"),
        ({"variant": "ti", "family": "timm"}, "official, flyegle"),
        ({"variant": "ti", "num_classes": 0}, "at least 1"),
        ({"variant": "ti", "img_size": 150}, "multiples of 32"),
        ({"variant": "ti", "img_size": (160, 0)}, "multiples of 32"),
        ({"variant": "ti", "img_size": -32}, "multiples of 32"),
    ],
)
def test_unusable_arguments_are_refused_with_what_to_do(
    arguments: dict[str, object], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        load_model(**arguments)  # type: ignore[arg-type]
