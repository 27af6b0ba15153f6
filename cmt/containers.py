"""Finding the network's weights among all that a checkpoint holds, averages before raw weights.

Trainers keep weights under many names (`model`, `state_dict`, `callbacks -> EMA -> ...`) and
under wrappers' prefixes (`module.`, `_orig_mod.`). What is looked for are the names that only
CMT's weights have, wherever they are; the way to them tells averages from raw weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from cmt.errors import InputError
from cmt.layouts import MARKERS
from cmt.network import METADATA
from cmt.printing import printable

TOP = "."
"""The name of weights that lie bare at the top of a file, beside others."""
_MARKER = re.compile(rf"^(.*\.)?(?:{'|'.join(MARKERS.values())})$", re.DOTALL)
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""What torch.compile, FSDP and activation checkpoints put into names, at any place."""
_AVERAGE_WORDS = {"swa", "avg", "average", "averaged", "averaging", "polyak", "shadow"}
_OPTIMISERS = re.compile(r"optimi[sz]er|opt(im)?(_|$)|exp_avg", re.IGNORECASE)
"""Their averages are of gradients, by the weights' own names."""
_SHOWN = 6
_DEEPEST = 16
"""Of dicts within dicts, where weights are looked for."""


@dataclass(frozen=True)
class Found:
    """Weights in a checkpoint.

    Attributes:
        name: what `--weights-key` calls them.
        entries: by the network's own or a public name, prefixes taken off.
        taken_off: the prefixes.
        left_out: entries that lie beside them and belong to no weights.
        averaged: these are an average of the weights that were trained.
        metadata: that the network had which was saved by `state_dict()`.
    """

    name: str
    entries: dict[Any, Any]
    taken_off: tuple[str, ...]
    left_out: tuple[str, ...]
    averaged: bool
    metadata: dict[str, str]

    def notes(self) -> list[str]:
        """A line for each way in which these are not just what the file holds."""
        lines = [
            f"'{printable(prefix)}' was taken off the names of the weights"
            for prefix in self.taken_off
        ]
        if self.left_out:
            lines.append(f"beside the weights there was, and is not read: {_listed(self.left_out)}")
        return lines


def choose(content: object, key: str | None, source: object) -> tuple[Found, list[str]]:
    """The weights in what a checkpoint held, and notes on how they were found.

    Args:
        content: dicts and lists, nested in any way, tensors in them.
        key: the name of the weights to take; None takes the average where there is one.
        source: what to call the checkpoint in messages.

    Raises:
        InputError: no weights, none of that name, or several that nothing tells apart; names
            those that were found.
    """
    found = list(_search(content))
    if not found:
        _refuse_without_weights(content, source)
    if key is not None:
        chosen = _named(found, key, source)
        return chosen, chosen.notes()
    averages = [one for one in found if one.averaged]
    lost = [] if averages else _averages(content)
    if lost:
        raise InputError(
            f"{source} holds an average of the weights, '{lost[0]}', that is no state dict of CMT: "
            f"take what was not averaged with --weights-key, {_names(found)}"
        )
    chosen = _only(averages or found, source)
    return chosen, [*_choice(chosen, found), *chosen.notes()]


def _choice(chosen: Found, found: list[Found]) -> list[str]:
    if not chosen.averaged:
        return []
    others = [one for one in found if one is not chosen]
    line = f"the averaged weights were taken, '{chosen.name}'"
    return [f"{line}, not {_names(others)} (--weights-key chooses)" if others else line]


def _only(found: list[Found], source: object) -> Found:
    """The one; the first where all are the same under several names."""
    first = found[0]
    if all(_same(first.entries, one.entries) for one in found[1:]):
        return first
    raise InputError(
        f"{source} holds several networks' weights: choose with --weights-key, {_names(found)}"
    )


def _same(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> bool:
    return one.keys() == other.keys() and all(_alias(v, other[k]) for k, v in one.items())


def _alias(one: Any, other: Any) -> bool:
    """Whether two plain tensors are one in memory; to compare values might take for ever."""
    if type(one) is not Tensor or type(other) is not Tensor:
        return one is other
    strided = one.layout is other.layout is torch.strided and not (one.is_nested or other.is_nested)
    # Of the class, for an attribute of a tensor may stand in a method's place.
    return strided and all(
        of(one) == of(other) for of in (Tensor.data_ptr, Tensor.size, Tensor.stride, _dtype)
    )


def _dtype(tensor: Tensor) -> torch.dtype:
    return tensor.dtype


def _named(found: list[Found], key: str, source: object) -> Found:
    exact = [one for one in found if one.name == key]
    matches = exact or [one for one in found if one.name.startswith(f"{key}.")]
    if len(matches) == 1:
        return matches[0]
    problem = f"no weights '{printable(key)}'" if not matches else f"several under '{key}'"
    raise InputError(f"{source} holds {problem}: give --weights-key one of {_names(found)}")


def _names(found: list[Found]) -> str:
    return ", ".join(f"'{one.name}'" for one in found)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{printable(name)}'" for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _refuse_without_weights(content: object, source: object) -> NoReturn:
    holding = [way for way in _walk(content) if _tensors(way.value)]
    if not any(isinstance(way.value, Mapping) for way in holding):
        raise InputError(
            f"{source} holds no state dict: expected 'model', 'state_dict' or bare tensors"
        )
    names = [way.name or TOP for way in holding]
    raise InputError(
        f"{source} holds no CMT weights, neither of the official layout "
        "('patch_embed_a.proj.weight') nor of FlyEgle's ('pool1.patch_aggregation.weight'); "
        f"tensors are in {_listed(names)}"
    )


def _search(content: object) -> Iterator[Found]:
    """All weights of CMT networks, in the file's order."""
    for way in _walk(content):
        if isinstance(way.value, Mapping):
            yield from _networks(way)


@dataclass(frozen=True)
class _Way:
    """A dict or list in a checkpoint, how it is reached, and what it lies in."""

    keys: tuple[str, ...]
    value: Any
    parent: Any = None

    @property
    def name(self) -> str:
        return printable(".".join(self.keys))

    @property
    def is_averaged(self) -> bool:
        """Whether all weights in it are averages."""
        # Lightning's WeightAveraging puts the average in the weights' place, and those elsewhere.
        in_place = self.keys[-1:] == ("state_dict",) and "current_model_state" in self.parent
        return in_place or _says_average(self.name)


def _walk(content: object) -> Iterator[_Way]:
    """Every dict and list in a checkpoint, but not those of optimisers."""
    seen: set[int] = set()  # pickles can hold themselves
    pending = [_Way((), content)]
    while pending:
        way = pending.pop()
        value = way.value
        if not isinstance(value, Mapping | list | tuple) or id(value) in seen:
            continue
        if len(way.keys) > _DEEPEST:
            continue
        seen.add(id(value))
        yield way
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        inner = [_Way((*way.keys, str(key)), one, value) for key, one in items]
        pending += reversed([one for one in inner if not _OPTIMISERS.match(one.keys[-1])])


def _networks(way: _Way) -> Iterator[Found]:
    """The weights in one dict, by their prefixes."""
    plain = {key: _WRAPPERS.sub("", key) for key in way.value if isinstance(key, str)}
    markers = (_MARKER.match(plain[key]) for key in plain if isinstance(way.value[key], Tensor))
    prefixes = dict.fromkeys(match[1] or "" for match in markers if match)
    for prefix in prefixes:
        yield _network(way, plain, prefix, tuple(one for one in prefixes if one != prefix))


def _network(way: _Way, plain: dict[str, str], prefix: str, others: tuple[str, ...]) -> Found:
    """What has this prefix and none of the others, which are other networks'."""
    longer = tuple(one for one in others if len(one) > len(prefix))
    names: dict[Any, Any] = {
        key: short[len(prefix) :]
        for key, short in plain.items()
        if short.startswith(prefix) and not short.startswith(longer)
    }
    beside = [key for key in way.value if not plain.get(key, "").startswith((prefix, *others))]
    if not prefix:
        names |= {key: key for key in way.value if key not in plain}
    if len(set(names.values())) < len(names):
        raise InputError(f"'{way.name or TOP}' has weights twice, with and without '_orig_mod.'")
    wrapper = next((m[0] for m in map(_WRAPPERS.search, filter(_is_text, names)) if m), "")
    # torch's AveragedModel counts beside the module that it wraps.
    counter = f"{prefix.removesuffix('module.')}n_averaged"
    within = f"{way.name}.{prefix}".strip(".") if others else way.name
    return Found(
        name=printable(within) or TOP,
        entries={short: way.value[key] for key, short in names.items()},
        taken_off=tuple(filter(None, (wrapper, prefix))),
        left_out=tuple(map(str, beside)),
        averaged=way.is_averaged or counter in way.value or _says_average(prefix),
        metadata=_metadata(way.value, prefix),
    )


def _metadata(state: Mapping, prefix: str) -> dict[str, str]:
    """What `CMT.state_dict()` keeps beside the weights, where torch keeps versions of modules."""
    modules = getattr(state, "_metadata", None)
    for name, kept in modules.items() if isinstance(modules, Mapping) else ():
        if not isinstance(name, str) or not isinstance(kept, Mapping) or METADATA not in kept:
            continue
        found = kept[METADATA]
        here = _WRAPPERS.sub("", f"{name}." if name else "") == prefix
        if here and isinstance(found, dict) and all(map(_is_text, [*found, *found.values()])):
            return dict(found)
    return {}


def _is_text(key: object) -> bool:
    return isinstance(key, str)


def _says_average(name: str) -> bool:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return any(
        word in _AVERAGE_WORDS or word.startswith("ema") or word.endswith("ema")
        for word in map(str.lower, words)
    )


def _averages(content: object) -> list[str]:
    """Names of what is called an average and holds tensors, but for counters."""
    return [
        way.name
        for way in _walk(content)
        if way.is_averaged and any(tensor.ndim for tensor in _tensors(way.value))
    ]


def _tensors(value: Mapping | list | tuple) -> list[Tensor]:
    inner = value.values() if isinstance(value, Mapping) else value
    return [one for one in inner if isinstance(one, Tensor)]
