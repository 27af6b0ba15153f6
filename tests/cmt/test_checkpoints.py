"""Every container and layout loads; what does not fit is refused in one readable line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_files import assert_holds, official_checkpoint, refusal, saved
from safetensors.torch import save_file
from torch import Tensor

from cmt import FAMILIES, load_model
from cmt.checkpoints import (
    detect_classes,
    detect_family,
    detect_size,
    detect_variant,
)
from cmt.errors import InputError
from cmt.layouts import to_public_layout
from cmt.network import CMT, build
from cmt.variants import HEADS
from cmt.weight_files import read

State = dict[str, Tensor]
MakeTiny = Callable[..., CMT]


# Containers


def test_official_training_checkpoint_gives_its_average(state: State, tmp_path: Path) -> None:
    raw = {key: torch.zeros_like(value) for key, value in state.items()}
    path = saved(official_checkpoint(raw, model_ema=state), tmp_path)
    assert_holds(load_model("tiny", path), state)


@pytest.mark.parametrize("average", [{}, {"model_ema": None}], ids=["absent", "None"])
def test_official_training_checkpoint_without_average_gives_the_model(
    average: dict[str, None], state: State, tmp_path: Path
) -> None:
    path = saved(official_checkpoint(state, **average), tmp_path)
    assert_holds(load_model("tiny", path), state)


def test_state_dict_key_with_module_prefix(flyegle_state: State, tmp_path: Path) -> None:
    prefixed = {f"module.{key}": value for key, value in flyegle_state.items()}
    path = saved({"epoch": 3, "state_dict": prefixed}, tmp_path)
    assert_holds(load_model("tiny", path), flyegle_state)


def test_bare_state_dict_in_the_old_file_format(state: State, tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert_holds(load_model("tiny", path), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_safetensors_in_another_precision_with_metadata(
    dtype: torch.dtype, state: State, tmp_path: Path
) -> None:
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    save_file(cast, tmp_path / "w.safetensors", {"labels": '["a"]', "resize": "70"})
    model = load_model("tiny", tmp_path / "w.safetensors")
    assert model.metadata == {"labels": '["a"]', "resize": "70"}
    assert all(p.dtype is torch.float32 for p in model.parameters())
    assert_holds(model, {k: v.float() if v.is_floating_point() else v for k, v in cast.items()})


def test_stripped_training_counters_do_not_matter(state: State, tmp_path: Path) -> None:
    kept = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert len(kept) < len(state)
    assert_holds(load_model("tiny", saved(kept, tmp_path)), state)


def test_a_checkpoint_path_may_be_text(state: State, tmp_path: Path) -> None:
    assert_holds(load_model("tiny", str(saved(state, tmp_path))), state)


# Layouts


@pytest.mark.parametrize("family", FAMILIES)
def test_public_layout_round_trip(family: str, make_tiny: MakeTiny, tmp_path: Path) -> None:
    model = make_tiny(family)
    loaded = load_model("tiny", saved(to_public_layout(model), tmp_path))
    assert not loaded.training
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copied_model_has_the_same_public_layout(family: str, make_tiny: MakeTiny) -> None:
    model = make_tiny(family)
    assert_holds(copy.deepcopy(model), to_public_layout(model))


def test_flyegle_kv_output_splits_into_head_dim_heads_and_two(
    flyegle_state: State, tmp_path: Path
) -> None:
    model = load_model("tiny", saved(flyegle_state, tmp_path))
    for stage, heads in enumerate(HEADS):
        attention = model.get_submodule(f"stages.{stage}.blocks.0.attention")
        prefix = f"stage{stage + 1}.block_list.0.LMHSA.kv"
        weight, bias = flyegle_state[f"{prefix}.weight"], flyegle_state[f"{prefix}.bias"]
        tokens = torch.randn(2, 7, weight.shape[1], generator=torch.Generator().manual_seed(3))
        fused = torch.nn.functional.linear(tokens, weight, bias).reshape(2, 7, -1, heads, 2)
        for i, own in enumerate(attention.get_submodule(part) for part in "kv"):
            per_head = own(tokens).reshape(2, 7, heads, -1)
            torch.testing.assert_close(per_head, fused[..., i].transpose(2, 3))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("size", "classes"), [(32, 3), (64, 5), (96, 17)])
def test_family_variant_size_and_classes_are_detected(
    family: str, size: int, classes: int, make_tiny: MakeTiny, tmp_path: Path
) -> None:
    path = saved(to_public_layout(make_tiny(family, size, classes)), tmp_path)
    weights = read(path)
    state = weights.state
    found = detect_family(state)
    assert found.name == family
    assert detect_variant(state, found) == "tiny"
    assert detect_size(state, found) == size
    assert detect_classes(state, found) == classes
    assert weights.metadata == {}
    assert weights.notes == []
    model = load_model("tiny", path)
    assert (model.img_size, model.num_classes) == ((size, size), classes)


def test_the_trained_checkpoint_loads_with_its_labels(shared: Path) -> None:
    model = load_model("ti", shared / "checkpoints" / "cmt_ti_imagenette.safetensors")
    assert (model.img_size, model.num_classes, model.family.name) == ((160, 160), 10, "official")
    assert "garbage truck" in model.metadata["labels"]


# Weights that do not fit


def test_missing_keys_are_named(state: State, tmp_path: Path) -> None:
    del state["blocks_a.0.attn.q.weight"]
    assert "missing blocks_a.0.attn.q.weight" in refusal(saved(state, tmp_path))


def test_many_missing_keys_are_counted(state: State, tmp_path: Path) -> None:
    kept = {key: value for key, value in state.items() if not key.startswith("blocks_c.1.")}
    message = refusal(saved(kept, tmp_path))
    assert "missing blocks_c.1." in message
    assert "more" in message
    assert len(message) < 300


def test_unexpected_keys_are_named(state: State, tmp_path: Path) -> None:
    state["blocks_a.7.proj.weight"] = torch.zeros(8)
    assert "unexpected blocks_a.7.proj.weight" in refusal(saved(state, tmp_path))


def test_misshapen_keys_are_named_with_both_shapes(state: State, tmp_path: Path) -> None:
    state["blocks_b.0.norm1.weight"] = torch.zeros(15)
    message = refusal(saved(state, tmp_path))
    assert "'blocks_b.0.norm1.weight' is (15,), expected (16,)" in message


def test_misshapen_fused_keys_are_named_as_in_the_file(
    flyegle_state: State, tmp_path: Path
) -> None:
    key = "stage2.block_list.0.LMHSA.kv.weight"
    flyegle_state[key] = flyegle_state[key][:-1]
    assert f"'{key}' is (31, 16), expected (32, 16)" in refusal(saved(flyegle_state, tmp_path))


@pytest.mark.parametrize(
    "key", ["patch_embed_b.proj.weight", "relative_pos_a", "head.weight", "relative_pos_c"]
)
@pytest.mark.parametrize("value", [None, torch.tensor(1.0)], ids=["missing", "scalar"])
def test_keys_that_tell_the_network_apart_may_be_broken_too(
    key: str, value: Tensor | None, state: State, tmp_path: Path
) -> None:
    del state[key]
    if value is not None:
        state[key] = value
    refusal(saved(state, tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(
    value: float, state: State, tmp_path: Path
) -> None:
    state["head.bias"][2] = value
    message = refusal(saved(state, tmp_path))
    assert "'head.bias' holds NaN or Inf" in message


def test_weights_beyond_single_precision_are_refused(state: State, tmp_path: Path) -> None:
    state["head.bias"] = torch.full((5,), 1e300, dtype=torch.float64)
    assert "'head.bias' holds NaN or Inf" in refusal(saved(state, tmp_path))


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.int8, torch.int64, torch.bool, torch.complex64),
        *(torch.float8_e4m3fn, torch.float4_e2m1fn_x2),
    ],
)
def test_weights_that_are_no_floats_are_refused(
    dtype: torch.dtype, state: State, tmp_path: Path
) -> None:
    state["head.bias"] = torch.zeros(5 * dtype.itemsize, dtype=torch.uint8).view(dtype)
    assert f"'head.bias' has dtype {dtype}" in refusal(saved(state, tmp_path))


def test_entries_that_are_no_tensors_are_refused(state: State, tmp_path: Path) -> None:
    content: dict[str, object] = {**state, "epoch": 3}
    assert "'epoch' is no tensor" in refusal(saved(content, tmp_path))


def test_another_variants_weights_are_refused_by_name(state: State, tmp_path: Path) -> None:
    message = refusal(saved(state, tmp_path), "ti")
    assert "holds CMT-tiny weights: use --variant tiny" in message


def test_unknown_widths_are_refused(state: State, tmp_path: Path) -> None:
    state["patch_embed_d.proj.weight"] = torch.zeros(65, 32, 2, 2)
    assert "(8, 16, 32, 65)" in refusal(saved(state, tmp_path))


def test_other_classes_than_the_weights_get_a_new_classifier_which_is_said(
    state: State, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    save_file(state, path, {"labels": json.dumps(list("abcde")), "mean": "[0.5, 0.5, 0.5]"})
    given = load_model("tiny", path)
    with pytest.warns(UserWarning, match="classifier is new and not trained, for 10 classes"):
        fresh = load_model("tiny", path, num_classes=10)
    assert fresh(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
    assert fresh.metadata == {"mean": "[0.5, 0.5, 0.5]"}
    for name, value in given.state_dict().items():
        assert name.startswith("head.classifier.") or torch.equal(fresh.state_dict()[name], value)
    same = load_model("tiny", path, num_classes=5)
    assert same.notes == ()
    assert torch.equal(same.head.classifier.weight, given.head.classifier.weight)


def test_the_demo_is_loaded_by_its_name() -> None:
    model = load_model("ti", "demo")
    assert (model.img_size, model.num_classes) == ((160, 160), 10)
    assert "T-shirt/top" in model.metadata["labels"]
    with pytest.raises(InputError, match="exist for ti alone"):
        load_model("xs", "demo")


def test_another_family_than_asked_for_is_refused(state: State, tmp_path: Path) -> None:
    path = saved(state, tmp_path)
    assert "is of the official family, not flyegle" in refusal(path, family="flyegle")
    assert load_model("tiny", path, family="official").family.name == "official"


def test_another_networks_weights_are_refused(tmp_path: Path) -> None:
    path = saved(torch.nn.Conv2d(3, 8, 3).state_dict(), tmp_path)
    assert "no CMT weights" in refusal(path, "ti")


@pytest.mark.parametrize("content", [[1, 2], {}, {"model": None}, "text", torch.zeros(3)])
def test_a_file_without_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    assert "no state dict" in refusal(saved(content, tmp_path), "ti")


def test_all_eight_layouts_are_told_apart() -> None:
    # ti and xs share their stem width; only the stage widths tell them apart.
    for variant in ("ti", "xs", "s", "b"):
        for name, family in FAMILIES.items():
            with torch.device("meta"):
                state = to_public_layout(build(variant, name))
            assert detect_variant(state, family) == variant
