"""Which products of CMT run in INT8, as data, for TensorRT and ONNX Runtime.

For OpenVINO, NNCF chooses by its own rules (`quantize.openvino_int8`).

What is quantised makes up 88 % of the multiply-adds of CMT-Ti at 160 pixels. Residual sums,
normalisations, activations, softmax and the products inside attention always stay float: each
sets or reads the full range of the residual stream, or costs next to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cmt.errors import InputError


@dataclass(frozen=True)
class Role:
    """One kind of weighted layer and its precision.

    Attributes:
        name: what the layer is to the network.
        pattern: regular expression for the layer's whole path, `stages.0.entry.conv`.
        int8: weights and input in INT8; otherwise the layer keeps the graph's float type.
        reason: why. Errors are the root mean square change of the logits relative to their
            own, with only this role in INT8 (CMT-Ti trained on Imagenette, 120 photos).
    """

    name: str
    pattern: str
    int8: bool
    reason: str


_BLOCK = r"stages\.\d+\.blocks\.\d+"

RECIPE: tuple[Role, ...] = (
    Role("stem", r"stem\.\d+\.conv", False, "5 % of the products, largest errors: 1.6, 1.1, 1.0 %"),
    Role("first stage entry", r"stages\.0\.entry\.conv", False, "reads the stem: 1.2 %"),
    Role("stage entry", r"stages\.[123]\.entry\.conv", True, "0.2 to 0.3 % each"),
    Role("lpu", rf"{_BLOCK}\.lpu", False, "depthwise"),
    Role("attention input", rf"{_BLOCK}\.attention\.(q|k|v)", True, "0.1 % each"),
    Role("attention output", rf"{_BLOCK}\.attention\.proj", True, "0.1 %"),
    Role("reduction", rf"{_BLOCK}\.attention\.reduce\.conv", True, "where dense: as costly as q"),
    Role("ffn expand", rf"{_BLOCK}\.ffn\.expand", True, "0.6 %, 31 % of the products"),
    Role("ffn depthwise", rf"{_BLOCK}\.ffn\.depthwise", False, "depthwise"),
    Role("ffn project", rf"{_BLOCK}\.ffn\.project", True, "1.2 %, 31 % of the products"),
    Role("head features", r"head\.features", True, "0.1 %"),
    Role("classifier", r"head\.classifier", False, "one row per image: nothing to gain"),
)
DEPTHWISE_INT8 = False
"""For depthwise convolutions of every role, whose error is small (0.1 to 0.2 %) but whose gain
is too: 3 % of the products, bound by memory. TensorRT has lacked kernels for quantised ones, and
NVIDIA's own quantiser leaves out those whose channels are no multiple of 8, most of CMT's."""


def is_int8(parameters: Iterable[str], depthwise: bool) -> bool:
    """Whether the layer that holds these parameters (`stages.3.entry.conv.weight`) is INT8."""
    return role_of(parameters).int8 and (DEPTHWISE_INT8 or not depthwise)


def role_of(parameters: Iterable[str]) -> Role:
    """The role of the layer that holds these parameters (`stages.3.entry.conv.weight`).

    Exporters rename a transposed weight but leave its bias alone, so any name that fits
    decides. Raises InputError when none does: no layer is left out silently.
    """
    names = list(parameters)
    for name in names:
        path = re.sub(r"\.(weight|bias)$", "", name)
        for role in RECIPE:
            if re.fullmatch(role.pattern, path):
                return role
    raise InputError(
        f"no INT8 role for the layer with the parameters {', '.join(names)}: "
        "add a row to quantize/recipe.py"
    )
