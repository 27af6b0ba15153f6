"""A network from its checkpoint: family, variant, size and classes are found in the weights."""

from __future__ import annotations

import math
import re
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from cmt.errors import InputError
from cmt.layouts import HEAD_KEYS, MARKERS, OWN, State, layout_name, split_kv, to_public_layout
from cmt.network import CMT, build
from cmt.position import resize_relative_table, resize_stage_table
from cmt.variants import (
    FAMILIES,
    FLYEGLE,
    OFFICIAL,
    REDUCTIONS,
    STRIDES,
    VARIANTS,
    Family,
    Variant,
    get_variant,
    parse_size,
)
from cmt.weight_files import MEMORY, Weights, read

_OF_CLASSES = ("labels", "wnids", "num_classes", "top1")
"""Metadata that tells of the classes."""
_POSITION = "stages.0.positions.0.table"


def _layout(state: State) -> str | None:
    """The layout whose names the state dict has."""
    for layout, marker in MARKERS.items():
        if any(re.fullmatch(marker, key) for key in state):
            return layout
    return None


def _entry(state: State, family: Family, name: str) -> tuple[str, Tensor | None]:
    """What the state dict calls a network's parameter, and the parameter."""
    layout = OWN if _layout(state) == OWN else family.name
    key = layout_name(name, layout)
    return key, state.get(key)


def detect_family(state: State) -> Family:
    """The family whose layout the state dict has; of our own, whose position tables."""
    layout = _layout(state)
    if layout is None:
        raise InputError("these are no CMT weights: no entry has a name of any known layout")
    if layout != OWN:
        return FAMILIES[layout]
    table = state.get(_POSITION)
    return FLYEGLE if table is not None and table.ndim == 2 else OFFICIAL


def _length(value: Tensor | None) -> int | None:
    """The first dimension of an entry, None where it is missing or a scalar."""
    return value.shape[0] if value is not None and value.ndim else None


def detect_variant(state: State, family: Family) -> str:
    """The variant whose stage widths match."""
    names = [f"stages.{i}.entry.conv.weight" for i in range(len(STRIDES))]
    dims = tuple(_length(_entry(state, family, name)[1]) for name in names)
    for name, variant in VARIANTS.items():
        if variant.dims == dims:
            return name
    raise InputError(f"no CMT variant has stage widths {dims}: are these CMT weights?")


def detect_size(state: State, family: Family) -> int:
    """The square input side, in pixels, that the position tables were trained at."""
    key, table = _entry(state, family, _POSITION)
    side = None
    if family.block_position:
        length = _length(table)
        side = None if length is None else (length + 1) / 2
    elif table is not None and table.ndim == 3:
        side = math.sqrt(table.shape[1])
    if side is None or side != int(side):
        raise InputError(f"cannot tell the trained input size: position table '{key}' is unusable")
    return int(side) * STRIDES[0]


def detect_classes(state: State, family: Family) -> int:
    """The width of the classifier."""
    key, weight = _entry(state, family, "head.classifier.weight")
    if weight is None or weight.ndim != 2:
        raise InputError(f"'{key}' is missing: these weights have no classifier")
    return weight.shape[0]


def _check_keys(expected: State, found: State, family: Family) -> None:
    """Raise InputError that lists the first missing, extra and misshapen keys."""
    problems = []
    for label, keys in (
        ("missing", expected.keys() - found.keys()),
        ("unexpected", found.keys() - expected.keys()),
    ):
        # Counters of training steps do not matter here and are often stripped.
        names = sorted(key for key in keys if not key.endswith("num_batches_tracked"))
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{label} {', '.join(names[:3])}{more}")
    shared = sorted(expected.keys() & found.keys())
    misshapen = [key for key in shared if expected[key].shape != found[key].shape]
    # A missing or unexpected key says more than the shapes that it may have shifted.
    if misshapen and not problems:
        key = misshapen[0]
        problems.append(
            f"'{key}' is {tuple(found[key].shape)}, expected {tuple(expected[key].shape)}"
        )
    if problems:
        raise InputError(f"weights do not fit the {family.name} family: {'; '.join(problems)}")


def load_state(model: CMT, state: State, trained_size: int) -> None:
    """Load a state dict of any layout, resizing position tables where sizes differ."""
    features = model.head is None
    _check_fit(state, model.variant, model.family, trained_size, model.num_classes, features)
    _fill(model, state, trained_size)


def _check_fit(
    state: State, variant: Variant, family: Family, trained_size: int, classes: int, features: bool
) -> None:
    """Raise InputError unless the state dict fits such a network, without any room for one."""
    size = parse_size(trained_size)
    with torch.device("meta"):
        expected = CMT(variant, family, size, classes, features)
        named = expected.state_dict() if _layout(state) == OWN else to_public_layout(expected)
    _check_keys(named, _without_head(state) if features else state, family)


def _without_head(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith(HEAD_KEYS)}


def _fill(model: CMT, state: State, trained_size: int) -> None:
    layout = OWN if _layout(state) == OWN else model.family.name
    if layout == FLYEGLE.name:
        state = split_kv(state)
    own = {}
    for name in model.state_dict():
        key = layout_name(name, layout)
        if ".positions." in name:
            own[name] = _resize_table(state[key], name, parse_size(trained_size), model)
        elif key in state:  # counters of training steps may be missing
            own[name] = state[key]
    model.load_state_dict(own, strict=False)


def _resize_table(table: Tensor, name: str, trained: tuple[int, int], model: CMT) -> Tensor:
    """The position table of parameter `name`, fitted to the model's input size."""
    stage = int(name.split(".")[1])
    stride = STRIDES[stage]
    new = (model.img_size[0] // stride, model.img_size[1] // stride)
    if model.family.block_position:
        return resize_relative_table(table, new)
    old = (trained[0] // stride, trained[1] // stride)
    return resize_stage_table(table, old, new, REDUCTIONS[stage])


def load_model(
    variant: str,
    weights: str | Path | None = None,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    *,
    family: str | None = None,
    features: bool = False,
    weights_key: str | None = None,
) -> CMT:
    """A CMT in evaluation mode, with its checkpoint's family, classes and size found for you.

    Args:
        variant: ti, xs, s or b.
        weights: a checkpoint file (see `weight_files.read`), or `demo` for those that come along,
            of ti; None keeps the random initialisation. Of a file that holds averaged weights as
            well, the average is taken.
        img_size: input side, or (height, width), in pixels, multiples of 32. By default the
            size the weights were trained at, else the variant's own. Position tables are
            resized bicubically (`cmt.position`).
        num_classes: for fine-tuning, another number of classes than the weights have: a classifier
            that is new, which the notes say. 1000 without weights.
        family: 'official' (default without weights) or 'flyegle'; must match the weights.
        features: return the four stage maps (strides 4, 8, 16, 32) in place of logits.
        weights_key: which of the weights in the file, such as `state_dict`.

    `notes` of the network say how its weights were found, where that was no matter of course;
    each is a UserWarning as well.

    Raises:
        InputError: unknown variant or size, unreadable weights, weights that do not fit, several
            of which none is the average.
    """
    model = load_noted(
        variant, weights, img_size, num_classes, family, features=features, weights_key=weights_key
    )
    for note in model.notes:
        warnings.warn(f"{weights}: {note}", stacklevel=2)
    return model


def load_noted(
    variant: str,
    weights: str | Path | Weights | None = None,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    family: str | None = None,
    *,
    features: bool = False,
    weights_key: str | None = None,
) -> CMT:
    """`load_model`, whose caller says the notes; also of weights that are read already."""
    get_variant(variant)
    if img_size is not None:
        parse_size(img_size)
    if isinstance(weights, Weights):
        found, source = weights, MEMORY
    else:
        path, source = named_weights(weights or "random", variant), str(weights)
        if path is None:
            classes = 1000 if num_classes is None else num_classes
            return build(variant, family or OFFICIAL.name, img_size, classes, features).eval()
        found = read(path, weights_key)
    found_family = detect_family(found.state)
    found_variant = detect_variant(found.state, found_family)
    if found_variant != variant:
        raise InputError(
            f"{source} holds CMT-{found_variant} weights: use --variant {found_variant}"
        )
    if family not in (None, found_family.name):
        raise InputError(f"{source} is of the {found_family.name} family, not {family}")
    return _network_of(found, variant, found_family, img_size, num_classes, features)


def _network_of(
    found: Weights,
    variant: str,
    family: Family,
    img_size: int | tuple[int, int] | None,
    num_classes: int | None,
    features: bool,
) -> CMT:
    state = found.state
    classes = 0 if features else detect_classes(state, family)
    trained_size = detect_size(state, family)
    try:  # before there is a network: what weights claim to be may be of any size
        _check_fit(state, get_variant(variant), family, trained_size, classes, features)
    except InputError as error:
        raise InputError("; ".join([str(error), *found.notes])) from error
    wanted = classes if features or num_classes is None else num_classes
    model = build(variant, family.name, img_size or trained_size, wanted, features)
    model.metadata, notes = dict(found.metadata), list(found.notes)
    if wanted != classes:
        state = _without_classifier(state, family)
        model.metadata = {k: v for k, v in found.metadata.items() if k not in _OF_CLASSES}
        notes.append(
            f"the classifier is new and not trained, for {wanted} classes: the weights' own is "
            f"for {classes}"
        )
    _fill(model, state, trained_size)
    model.notes = tuple(notes)
    return model.eval()


def _without_classifier(state: State, family: Family) -> State:
    own = {_entry(state, family, f"head.classifier.{part}")[0] for part in ("weight", "bias")}
    return {key: value for key, value in state.items() if key not in own}


def named_weights(weights: str | Path, variant: str) -> Path | None:
    """The file that `demo` or a path stands for; None for `random`.

    Raises:
        InputError: there are no demo weights of this variant.
    """
    if weights == "random":
        return None
    if weights != "demo":
        return Path(weights)
    if variant != "ti":
        raise InputError("demo weights exist for ti alone: give --weights a file, or 'random'")
    # Beside the images that they were trained on, which this room knows nothing of.
    (folder,) = find_spec("cmt.calib_data").submodule_search_locations  # type: ignore[union-attr, misc]
    return Path(folder, "fashion_mnist", "cmt_ti.safetensors")
