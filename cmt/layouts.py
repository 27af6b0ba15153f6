"""The names that a network's weights have in files: two public layouts, and our own.

A network's own parameter names (`stages.0.blocks.1.attention.q.weight`) are translated to
and from the names of the two public layouts; nothing else knows those.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from cmt.network import CMT
from cmt.variants import FLYEGLE, HEADS

State = dict[str, Tensor]

_STAGE_LETTERS = "abcd"

# (pattern in a network's name, what the layout has in its place), applied in turn.
_Names = list[tuple[str, str | Callable[[re.Match[str]], str]]]
_OFFICIAL_NAMES: _Names = [
    (r"stem\.(\d)\.(conv|norm)", lambda m: f"stem_{m[2]}{int(m[1]) + 1}"),
    (r"stages\.(\d)\.positions\.0\.table", lambda m: f"relative_pos_{_letter(m[1])}"),
    (r"stages\.(\d)\.entry\.conv", lambda m: f"patch_embed_{_letter(m[1])}.proj"),
    (r"stages\.(\d)\.entry\.norm", lambda m: f"patch_embed_{_letter(m[1])}.norm"),
    (r"stages\.(\d)\.blocks", lambda m: f"blocks_{_letter(m[1])}"),
    (r"\.attention\.reduce\.conv", ".attn.sr.0"),
    (r"\.attention\.reduce\.norm", ".attn.sr.1"),
    (r"\.attention\.", ".attn."),
    (r"\.ffn\.expand\.", ".mlp.conv1.0."),
    (r"\.ffn\.expand_norm\.", ".mlp.conv1.2."),
    (r"\.ffn\.depthwise\.", ".mlp.proj."),
    (r"\.ffn\.depthwise_norm\.", ".mlp.proj_bn."),
    (r"\.ffn\.project\.", ".mlp.conv2.0."),
    (r"\.ffn\.project_norm\.", ".mlp.conv2.1."),
    (r"\.lpu\.", ".proj."),
    (r"^head\.features\.", "_fc."),
    (r"^head\.norm\.", "_bn."),
    (r"^head\.classifier\.", "head."),
]
_EXPAND = ".IRFFN.conv1x1_gelu_bn.conv3x3_gelu_bn"
_FLYEGLE_NAMES: _Names = [
    (r"stem\.0\.conv", "stem.conv3x3_gelu_bn_downsample.conv3x3_gelu_bn.0"),
    (r"stem\.0\.norm", "stem.conv3x3_gelu_bn_downsample.conv3x3_gelu_bn.2"),
    (
        r"stem\.([12])\.(conv|norm)",
        lambda m: (
            f"stem.conv3x3_gelu_bn_list.{int(m[1]) - 1}.conv3x3_gelu_bn."
            f"{'0' if m[2] == 'conv' else '2'}"
        ),
    ),
    (r"stages\.(\d)\.entry\.conv", lambda m: f"pool{int(m[1]) + 1}.patch_aggregation"),
    (
        r"stages\.(\d)\.positions\.(\d+)\.table",
        lambda m: f"stage{int(m[1]) + 1}.block_list.{m[2]}.LMHSA.position_embeeding",
    ),
    (r"stages\.(\d)\.blocks", lambda m: f"stage{int(m[1]) + 1}.block_list"),
    (r"\.attention\.reduce\.conv", ".LMHSA.sr"),
    (r"\.attention\.reduce\.norm", ".LMHSA.norm"),
    (r"\.attention\.", ".LMHSA."),
    (r"\.ffn\.expand\.", f"{_EXPAND}.0."),
    (r"\.ffn\.expand_norm\.", f"{_EXPAND}.2."),
    (r"\.ffn\.depthwise\.", ".IRFFN.conv3x3_dw.conv."),
    (r"\.ffn\.depthwise_norm\.", ".IRFFN.act.1."),
    (r"\.ffn\.project\.", ".IRFFN.conv1x1_pw.0."),
    (r"\.ffn\.project_norm\.", ".IRFFN.conv1x1_pw.1."),
    (r"\.lpu\.", ".LPU.conv_3x3_dw.conv."),
    (r"^head\.features\.", "fc."),
    (r"^head\.classifier\.", "classifier."),
]
OWN = "own"
"""The layout of `CMT.state_dict()`, of both families."""
_LAYOUTS = {"official": _OFFICIAL_NAMES, "flyegle": _FLYEGLE_NAMES, OWN: []}
HEAD_KEYS = ("_fc.", "_bn.", "head.", "fc.", "classifier.")
"""What the names of a head's entries begin with, in any layout."""
MARKERS = {
    "official": r"patch_embed_[a-d]\.proj\.weight",
    "flyegle": r"pool[1-4]\.patch_aggregation\.weight",
    OWN: r"stages\.[0-3]\.entry\.conv\.weight",
}
"""Patterns of the names that tell the layouts apart, and CMT from other networks."""


def _letter(stage: str) -> str:
    return _STAGE_LETTERS[int(stage)]


def layout_name(name: str, layout: str) -> str:
    """A network parameter's name in a layout (kv still as k and v)."""
    for pattern, replacement in _LAYOUTS[layout]:
        name = re.sub(pattern, replacement, name)
    return name


def _flyegle_heads(key: str) -> int:
    """The heads of the stage that a FlyEgle key (`stage1.block_list...`) belongs to."""
    return HEADS[int(key.removeprefix("stage")[0]) - 1]


def split_kv(state: State) -> State:
    """FlyEgle's fused `kv` (head_dim, heads, 2) -> `k` and `v` (heads, head_dim)."""
    out: State = {}
    for key, value in state.items():
        if ".LMHSA.kv." not in key:
            out[key] = value
            continue
        fused = value.unflatten(0, (-1, _flyegle_heads(key), 2))
        for part, rows in zip("kv", fused.unbind(2), strict=True):
            out[key.replace(".kv.", f".{part}.")] = rows.transpose(0, 1).flatten(0, 1)
    return out


def _join_kv(state: State) -> State:
    """The inverse of `split_kv`."""
    out: State = {}
    for key, value in state.items():
        if ".LMHSA.k." in key:
            pair = torch.stack([value, state[key.replace(".k.", ".v.")]], -1)
            by_head = pair.unflatten(0, (_flyegle_heads(key), -1)).transpose(0, 1)
            fused = by_head.movedim(-1, 2).flatten(0, 2)
            out[key.replace(".k.", ".kv.")] = fused
        elif ".LMHSA.v." not in key:
            out[key] = value
    return out


def to_public_layout(model: CMT) -> State:
    """The model's weights under its family's public names, as a checkpoint stores them."""
    state = {
        layout_name(name, model.family.name): value for name, value in model.state_dict().items()
    }
    return _join_kv(state) if model.family == FLYEGLE else state
