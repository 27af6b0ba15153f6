"""Weights are found under any name and prefix, averages first, and what was done is said."""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import State, assert_holds, official_checkpoint, refusal, saved
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cmt import FAMILIES, load_model
from cmt.checkpoints import load_noted
from cmt.errors import InputError
from cmt.layouts import to_public_layout
from cmt.network import CMT
from cmt.weight_files import in_memory

MakeTiny = Callable[..., CMT]


@pytest.fixture
def raw(make_tiny: MakeTiny) -> State:
    """Other weights than `state`, of the same network."""
    return to_public_layout(make_tiny("official", seed=1))


def load(content: object, folder: Path, key: str | None = None) -> CMT:
    """The network from such a checkpoint; its notes are warnings, and nothing else is."""
    path = saved(content, folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load_model("tiny", path, weights_key=key)
    assert [str(one.message) for one in caught] == [f"{path}: {note}" for note in model.notes]
    return model


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def averaging(average: State, raw: State) -> dict[str, dict[str, Any]]:
    """Checkpoints that hold an average and raw weights, as trainers write them."""
    counted = {"n_averaged": torch.tensor(7), **prefixed("module.", average)}
    return {
        "timm": {"epoch": 3, "state_dict": raw, "state_dict_ema": average},
        "official": official_checkpoint(raw, model_ema=average),
        "ema": {"model": raw, "ema": average},
        "ema first": {"ema_state_dict": average, "state_dict": raw},
        "nested": {"model": {"state_dict": raw}, "ema": {"decay": 0.9, "module": average}},
        "torch's AveragedModel": {"model": raw, "averaged": counted},
        "AveragedModel of no telling name": {"model": raw, "second": counted},
        "torch's SWA": {"model_state_dict": raw, "swa_model": counted},
        "camel case": {"model": raw, "modelEMA": average},
        "Lightning callback": {
            "state_dict": prefixed("model.", raw),
            "callbacks": {
                "ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(1.0)},
                "EMACallback{'decay': 0.999}": {"ema_state_dict": prefixed("model.", average)},
            },
        },
        "Lightning SWA": {
            "state_dict": prefixed("net.", raw),
            "callbacks": {
                "StochasticWeightAveraging": {
                    "n_averaged": 3,
                    "average_model_state": prefixed("net.", average),
                }
            },
        },
        "Lightning WeightAveraging": {
            "state_dict": prefixed("model.", average),
            "current_model_state": prefixed("model.", raw),
            "averaging_state": {"n_averaged": torch.tensor(3)},
        },
        "two networks in a state dict": {
            "state_dict": {**prefixed("model.", raw), **prefixed("ema_model.module.", average)}
        },
        "ema_pytorch": {
            "initted": torch.tensor(True),
            "step": torch.tensor(9),
            **prefixed("online_model.", raw),
            **prefixed("ema_model.", average),
        },
        "bare beside an average": {**raw, **prefixed("ema.", average)},
        "a list": {"networks": [{"net": raw}, {"net_ema": average}]},
    }


TRAINERS = list(averaging({}, {}))


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_average_is_taken_whatever_it_is_called(
    trainer: str, state: State, raw: State, tmp_path: Path
) -> None:
    model = load(averaging(state, raw)[trainer], tmp_path)
    assert_holds(model, state)
    assert "the averaged weights were taken" in model.notes[0]
    assert " not '" in model.notes[0]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_raw_weights_can_be_chosen_by_the_name_that_is_said(
    trainer: str, state: State, raw: State, tmp_path: Path
) -> None:
    content = averaging(state, raw)[trainer]
    note = next(note for note in load(content, tmp_path).notes if "averaged" in note)
    name = note.split(" not '")[1].split("'")[0] if "Lightning cal" not in trainer else "state_dict"
    model = load(content, tmp_path, name)
    assert_holds(model, raw)
    assert not any("averaged" in note for note in model.notes)


def test_an_average_that_lacks_entries_is_refused_with_its_name(
    state: State, raw: State, tmp_path: Path
) -> None:
    parameters = {key: value for key, value in state.items() if "running_" not in key}
    message = refusal(saved({"model": raw, "ema": parameters}, tmp_path))
    assert "running_mean" in message
    assert "'ema', not 'model'" in message


def test_an_average_among_optimiser_states_is_none(state: State, tmp_path: Path) -> None:
    moments = {key: torch.zeros_like(value) for key, value in state.items()}
    for optimizer in ("optimizer", "optim_state", "opt", "optimizer_states"):
        content = {"state_dict": state, optimizer: {"exp_avg": moments, "ema": [torch.ones(3)]}}
        model = load(content, tmp_path)
        assert_holds(model, state)
        assert model.notes == ()


@pytest.mark.parametrize("nothing", [None, {}, [], {"decay": 0.9}, {"updates": torch.tensor(0)}])
def test_an_empty_average_is_none(nothing: object, state: State, tmp_path: Path) -> None:
    assert load({"model": state, "model_ema": nothing}, tmp_path).notes == ()


@pytest.mark.parametrize(
    "unusable",
    [
        {"decay": 0.9, "shadow_params": [torch.ones(3), torch.ones(4)]},
        {"module": {"conv1.weight": torch.ones(3, 3)}},
        [torch.ones(3)],
    ],
)
def test_an_average_that_cannot_be_read_is_not_passed_over(
    unusable: object, state: State, tmp_path: Path
) -> None:
    content = {"model": state, "ema": unusable}
    message = refusal(saved(content, tmp_path))
    assert "'ema" in message
    assert "--weights-key" in message
    assert "'model'" in message
    assert_holds(load(content, tmp_path, "model"), state)


def test_several_that_nothing_tells_apart_are_refused_by_name(
    state: State, raw: State, tmp_path: Path
) -> None:
    for content, names in (
        ({"student": raw, "teacher": state}, ("student", "teacher")),
        ({"ema_slow": raw, "ema_fast": state, "model": state}, ("ema_slow", "ema_fast")),
        ({"student.": 1, **prefixed("a.", raw), **prefixed("b.", state)}, ("a", "b")),
    ):
        message = refusal(saved(content, tmp_path))
        assert "--weights-key" in message
        assert all(f"'{name}'" in message for name in names)
        assert_holds(load(content, tmp_path, names[1]), state)


def test_a_key_that_is_not_there_is_refused_with_those_that_are(
    state: State, raw: State, tmp_path: Path
) -> None:
    path = saved({"state_dict": raw, "state_dict_ema": state}, tmp_path)
    for key in ("ema", "state", "optimizer", ""):
        message = refusal(path, weights_key=key)
        assert f"no weights '{key}'" in message
        assert "'state_dict', 'state_dict_ema'" in message


def test_the_same_weights_under_two_names_are_no_choice(state: State, tmp_path: Path) -> None:
    again = {key: value.detach() for key, value in state.items()}
    model = load({"model": state, "state_dict": again}, tmp_path)
    assert_holds(model, state)
    assert model.notes == ()
    again["head.bias"] = again["head.bias"].clone()
    assert "several networks" in refusal(saved({"model": state, "state_dict": again}, tmp_path))


def test_what_is_made_to_be_compared_for_ever_is_refused_at_once(
    state: State, tmp_path: Path
) -> None:
    state["head.bias"] = torch.zeros(1).expand(10**13)
    other = {**state, "head.bias": torch.zeros(1).expand(10**13)}
    assert "several networks" in refusal(saved({"a": state, "b": other}, tmp_path))
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"a": deep}
    other["head.bias"] = torch.zeros(5)
    assert_holds(load({"deep": deep, "model": other}, tmp_path), other)


# Containers and prefixes


@pytest.mark.parametrize(
    "way",
    [
        ("model_state_dict",),
        ("net",),
        ("network",),
        ("module",),
        ("model", "state_dict"),
        ("checkpoint", "weights", "backbone"),
        ("any", "name", "at", "all"),
    ],
)
def test_a_container_of_any_name_is_opened(
    way: tuple[str, ...], state: State, tmp_path: Path
) -> None:
    content: object = OrderedDict(state)
    for name in reversed(way):
        content = {"epoch": 3, name: content}
    model = load(content, tmp_path)
    assert_holds(model, state)
    assert model.notes == ()


PREFIXES = ["module.", "model.", "net.", "backbone.", "_orig_mod.", "module.model.", "a.b.c."]
PREFIXES += ["_orig_mod.module.", "module._orig_mod.", "model._orig_mod.backbone."]
PREFIXES += ["_forward_module._fsdp_wrapped_module.model."]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("own", [False, True], ids=["public", "own"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_taken_off_and_said(
    prefix: str, own: bool, family: str, make_tiny: MakeTiny, tmp_path: Path
) -> None:
    network = make_tiny(family)
    state = network.state_dict() if own else to_public_layout(network)
    model = load({"state_dict": prefixed(prefix, state)}, tmp_path)
    assert_holds(model, to_public_layout(network))
    said = " ".join(model.notes)
    assert all(part in said for part in prefix.split("."))


def test_what_lies_beside_prefixed_weights_is_said(state: State, tmp_path: Path) -> None:
    content = {**prefixed("model.", state), "criterion.weight": torch.ones(5), "epoch": 3}
    model = load(content, tmp_path)
    assert_holds(model, state)
    assert "'criterion.weight', 'epoch'" in " ".join(model.notes)


def test_weights_with_and_without_a_wrapper_are_refused(state: State, tmp_path: Path) -> None:
    message = refusal(saved({**state, **prefixed("_orig_mod.", state)}, tmp_path))
    assert "twice" in message


def test_a_wrapper_within_the_names_is_taken_off(make_tiny: MakeTiny, tmp_path: Path) -> None:
    network = make_tiny("official")
    network.stages[1] = torch.compile(network.stages[1])
    model = load(network.state_dict(), tmp_path)
    assert_holds(model, to_public_layout(make_tiny("official")))
    assert "_orig_mod." in model.notes[0]


def test_prefixed_safetensors_keep_their_metadata(state: State, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(prefixed("backbone.", state), path, {"labels": json.dumps(list("abcde"))})
    with pytest.warns(UserWarning, match=r"backbone\."):
        model = load_model("tiny", path)
    assert_holds(model, state)
    assert model.metadata == {"labels": json.dumps(list("abcde"))}


def test_a_file_that_holds_itself_is_read(state: State, tmp_path: Path) -> None:
    content: dict[str, Any] = {"model": state}
    content["self"] = content
    assert_holds(load(content, tmp_path), state)


def test_a_name_of_many_lines_stays_one_line(state: State, raw: State, tmp_path: Path) -> None:
    assert "a b" in refusal(saved({"a\nb": state, "c\x1b[2J": raw}, tmp_path))


def test_names_of_where_tensors_are_help_where_there_are_no_weights(tmp_path: Path) -> None:
    message = refusal(saved({"net": {"conv1.weight": torch.ones(3)}, "epoch": 1}, tmp_path), "ti")
    assert "no CMT weights" in message
    assert "'net'" in message


# Networks that were loaded, and saved again


def wrappers(network: CMT) -> dict[str, object]:
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    state = network.state_dict()
    return {
        "bare": state,
        "DataParallel": torch.nn.DataParallel(network).state_dict(),
        "compiled": torch.compile(network).state_dict(),
        "averaged": average.state_dict(),
        "within a module": torch.nn.ModuleDict({"backbone": network}).state_dict(),
        "training checkpoint": official_checkpoint(state, model_ema=average.state_dict()),
        "half": {
            key: value.half() if value.is_floating_point() else value
            for key, value in state.items()
        },
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["bare", "DataParallel", "compiled", "averaged", "half"])
def test_a_loaded_network_saved_by_torch_loads_again(
    kind: str, family: str, make_tiny: MakeTiny, tmp_path: Path
) -> None:
    network = load(to_public_layout(make_tiny(family, img_size=96, num_classes=3)), tmp_path)
    for content in (wrappers(network)[kind], wrappers(network)["training checkpoint"]):
        again = load(content, tmp_path)
        assert again.family == network.family
        assert (again.img_size, again.num_classes) == ((96, 96), 3)
        tolerance = 1e-2 if kind == "half" else 0.0
        for name, value in network.state_dict().items():
            torch.testing.assert_close(
                again.state_dict()[name], value, rtol=tolerance, atol=tolerance
            )


@pytest.mark.parametrize(
    "kind", ["bare", "DataParallel", "compiled", "averaged", "within a module"]
)
def test_labels_and_preprocessing_come_back_with_a_state_dict(
    kind: str, make_tiny: MakeTiny, tmp_path: Path
) -> None:
    network = make_tiny("official")
    network.metadata = {"labels": json.dumps(list("abcde")), "mean": "[0.5, 0.5, 0.5]"}
    assert load(wrappers(network)[kind], tmp_path).metadata == network.metadata
    nested = {"epoch": 3, "net": [wrappers(network)[kind]]}
    assert load(nested, tmp_path).metadata == network.metadata


@pytest.mark.parametrize("kept", [7, {"cmt": 7}, {"cmt": {"labels": 7}}, {"cmt": {7: "labels"}}])
def test_what_is_no_metadata_is_not_taken_for_some(
    kept: Any, make_tiny: MakeTiny, tmp_path: Path
) -> None:
    state = make_tiny("official").state_dict()
    state._metadata[""] = kept  # type: ignore[attr-defined]
    assert load(state, tmp_path).metadata == {}


@pytest.mark.parametrize(
    "kind", ["bare", "DataParallel", "compiled", "averaged", "within a module"]
)
def test_a_network_in_memory_is_read_as_from_its_file(kind: str, make_tiny: MakeTiny) -> None:
    network = make_tiny("official")
    network.metadata = {"labels": json.dumps(list("abcde"))}
    wrapped = {
        "bare": lambda: network.half(),
        "DataParallel": lambda: torch.nn.DataParallel(network),
        "compiled": lambda: torch.compile(network),
        "averaged": lambda: AveragedModel(network),
        "within a module": lambda: torch.nn.ModuleDict({"backbone": network}),
    }[kind]()
    held = in_memory(wrapped)
    assert held.metadata == network.metadata
    again = load_noted("tiny", held)
    expected = network.float().state_dict()
    for name, value in again.state_dict().items():
        assert torch.equal(value, expected[name])
        assert value.data_ptr() != expected[name].data_ptr()
    assert held.sha256 == in_memory(wrapped.float()).sha256
    with torch.no_grad():
        next(wrapped.parameters()).add_(1)
    assert in_memory(wrapped).sha256 != held.sha256


def test_a_network_that_is_no_cmt_is_refused() -> None:
    with pytest.raises(InputError, match="the network in memory holds no CMT weights"):
        in_memory(torch.nn.Conv2d(3, 8, 3))


def test_own_names_resize_tables_and_give_features(make_tiny: MakeTiny, tmp_path: Path) -> None:
    network = make_tiny("flyegle", img_size=64)
    path = saved(network.state_dict(), tmp_path)
    direct = saved(to_public_layout(network), tmp_path, "public.pth")
    for options in ({"img_size": 96}, {"features": True}, {"img_size": (64, 96)}):
        own, public = (load_model("tiny", one, **options) for one in (path, direct))
        for name, value in public.state_dict().items():
            assert torch.equal(own.state_dict()[name], value), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "damage", ["missing", "misshapen", "extra", "no k", "odd v", "no table", "no entry"]
)
def test_damaged_own_names_are_refused_as_they_are_in_the_file(
    damage: str, family: str, make_tiny: MakeTiny, tmp_path: Path
) -> None:
    state: dict[str, Tensor] = make_tiny(family).state_dict()
    attention = "stages.1.blocks.0.attention"
    name = {
        "missing": "stem.0.conv.weight",
        "misshapen": "stem.0.norm.weight",
        "extra": "stages.7.weight",
        "no k": f"{attention}.k.weight",
        "odd v": f"{attention}.v.weight",
        "no table": "stages.2.positions.0.table",
        "no entry": "stages.0.entry.conv.bias",
    }[damage]
    if damage in ("misshapen", "odd v", "extra"):
        state[name] = torch.ones(3)
    else:
        del state[name]
    assert name in refusal(saved(state, tmp_path))
