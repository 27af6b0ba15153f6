"""Which layers of CMT run in INT8 and on what grid, as data, for every target.

Residual sums, normalisations, activations, softmax and the products inside attention always
stay float, under every recipe: each sets or reads the full range of the residual stream, or costs
next to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cmt.errors import InputError

EXPLICIT, OPENVINO, TENSOR_CORES = "explicit", "openvino", "tensor-cores"


@dataclass(frozen=True)
class Role:
    """One kind of weighted layer and its precision.

    Attributes:
        name: what the layer is to the network.
        pattern: regular expression for the layer's whole path, `stages.0.entry.conv`.
        int8: the recipes under which weights and input are INT8; under the others, the layer
            keeps the graph's float type.
        reason: why. Errors are the root mean square change of the logits relative to their
            own, with only this role in INT8, signed (CMT-Ti trained on Imagenette, 120 photos).
        depthwise: the same where the layer is depthwise.
    """

    name: str
    pattern: str
    int8: tuple[str, ...]
    reason: str
    depthwise: tuple[str, ...] = ()


_BLOCK = r"stages\.\d+\.blocks\.\d+"
_BOTH = (EXPLICIT, OPENVINO)
_ALL = (*_BOTH, TENSOR_CORES)

ROLES: tuple[Role, ...] = (
    Role("stem input", r"stem\.0\.conv", (), "1.6 %, and hardly faster in INT8: three channels"),
    Role(
        "stem",
        r"stem\.[12]\.conv",
        (OPENVINO,),
        "5 % of the products; 1.1 and 1.0 %: a CPU gains by it, TensorRT has FP16 beside it",
    ),
    Role(
        "first stage entry",
        r"stages\.0\.entry\.conv",
        (OPENVINO,),
        "1.2 %, for it reads the stem: as the stem",
    ),
    Role(
        "stage entry",
        r"stages\.[123]\.entry\.conv",
        _BOTH,
        "0.2 to 0.3 % each; TensorRT's INT8 convolutions write FP32",
    ),
    Role("lpu", rf"{_BLOCK}\.lpu", (), "depthwise, reads the residual stream"),
    Role("attention input", rf"{_BLOCK}\.attention\.(q|k|v|qkv)", _ALL, "0.1 % each"),
    Role(
        "attention keys and values",
        rf"{_BLOCK}\.attention\.kv",
        (),
        "few tokens: INT8 would cost a launch more in each block",
    ),
    Role("attention key bias", rf"{_BLOCK}\.attention\.key_bias", (), "one row"),
    Role("attention output", rf"{_BLOCK}\.attention\.proj", _ALL, "0.1 %"),
    Role(
        "first reduction",
        r"stages\.0\.blocks\.\d+\.attention\.reduce\.conv",
        _BOTH,
        "dense: INT8, as costly as q; depthwise: float, its input has no other INT8 reader",
    ),
    Role(
        "reduction",
        rf"{_BLOCK}\.attention\.reduce\.conv",
        _BOTH,
        "dense: INT8, as costly as q; depthwise: INT8 on CPUs alone, between INT8 layers",
        depthwise=(OPENVINO,),
    ),
    Role(
        "ffn expand",
        r"stages\.[012]\.blocks\.\d+\.ffn\.expand",
        _BOTH,
        "0.6 %, 27 % of the products; TensorRT would pass the widest maps once more",
    ),
    Role("last ffn expand", r"stages\.3\.blocks\.\d+\.ffn\.expand", _ALL, "4 % of the products"),
    Role(
        "ffn depthwise",
        rf"{_BLOCK}\.ffn\.depthwise",
        (OPENVINO,),
        "0.1 to 0.2 %, bound by memory; TensorRT has lacked kernels for quantised ones",
        depthwise=(OPENVINO,),
    ),
    Role("ffn project", rf"{_BLOCK}\.ffn\.project", _ALL, "1.2 %, 31 % of the products"),
    Role("head features", r"head\.features", _ALL, "0.1 %"),
    Role("classifier", r"head\.classifier", (OPENVINO,), "0.0 %, 2 % of a CPU's time"),
)


@dataclass(frozen=True)
class Recipe:
    """How one family of runtimes wants its INT8.

    Attributes:
        name: as in `Role.int8`.
        asymmetric: unsigned activations with a zero point; else signed ones around zero.
        at_source: quantise a normalisation's output where it is computed, ahead of the changes
            of layout, so that the runtime can do both at once.
        bf16: convolutions that stay float get BF16 numbers for weights, since that is how CPUs
            with the instructions run them.
    """

    name: str
    asymmetric: bool
    at_source: bool
    bf16: bool

    def is_int8(self, parameters: Iterable[str], depthwise: bool) -> bool:
        """Whether the layer that holds these parameters (`stages.3.entry.conv.weight`) is INT8."""
        role = role_of(parameters)
        return self.name in (role.depthwise if depthwise else role.int8)


RECIPES = {
    EXPLICIT: Recipe(EXPLICIT, asymmetric=False, at_source=False, bf16=False),
    TENSOR_CORES: Recipe(TENSOR_CORES, asymmetric=False, at_source=False, bf16=False),
    OPENVINO: Recipe(OPENVINO, asymmetric=True, at_source=True, bf16=True),
}


def unit_of(parameters: Iterable[str]) -> str:
    """The role and the stage of a layer, `ffn expand, stage 2`; stem and head have no stage."""
    names = list(parameters)
    role = role_of(names).name
    stages = {int(found[1]) for name in names if (found := re.match(r"stages\.(\d+)\.", name))}
    return f"{role}, stage {min(stages) + 1}" if stages else role


def role_of(parameters: Iterable[str]) -> Role:
    """The role of the layer that holds these parameters (`stages.3.entry.conv.weight`).

    Raises InputError when it has none: no layer is left out silently.
    """
    return _fitting(parameters)[0]


def layer_of(parameters: Iterable[str]) -> str:
    """The path in the network of the layer that holds these parameters.

    Where the graph has merged several (queries, keys and values), the first's. Raises as `role_of`.
    """
    return _fitting(parameters)[1]


def _fitting(parameters: Iterable[str]) -> tuple[Role, str]:
    """The role and the path of the first name that fits the recipe.

    Exporters rename a transposed weight but leave its bias alone, so any will do.
    """
    names = list(parameters)
    for name in names:
        path = re.sub(r"\.(weight|bias)$", "", name)
        for role in ROLES:
            if re.fullmatch(role.pattern, path):
                return role, path
    raise InputError(
        f"no INT8 role for the layer with the parameters {', '.join(names)}: "
        "add a row to quantize/recipe.py"
    )
