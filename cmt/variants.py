"""The one table of CMT variants and the two checkpoint families (no heavy imports).

Sources: CMT, CVPR 2022 (arXiv 2107.06263), table 1; the authors' release ("official") and
the FlyEgle re-implementation ("flyegle"), whose networks differ as `Family` states.
"""

from __future__ import annotations

from dataclasses import dataclass

from cmt.errors import InputError

HEADS = (1, 2, 4, 8)
REDUCTIONS = (8, 4, 2, 1)
STRIDES = (4, 8, 16, 32)
HEAD_WIDTH = 1280
SIZE_MULTIPLE = STRIDES[-1]
LARGEST_SIDE = 16384
"""Pixels of an image side; `manifest.schema.json` and the C++ reader agree."""


@dataclass(frozen=True)
class Family:
    """How one checkpoint family builds CMT where the two differ.

    Attributes:
        entry_norm: LayerNorm after the 2x2 convolution that opens each stage.
        dense_reduction: keys and values are reduced by a dense convolution and LayerNorm
            (else a depthwise convolution and BatchNorm).
        block_position: each block has its own relative table, shared by its heads (else one
            absolute table per stage with an entry per head).
        ffn_inner_activation: IRFFN shortcut adds `BN(GELU(dw(h)))` (else `dw(h)`, and GELU
            and BatchNorm follow the sum).
        pool_first: the head pools before its 1280-wide layer and has no activation.
        block_norm_eps: epsilon of the LayerNorms inside blocks.
        interpolation: what its published accuracies resized images with. The release names
            bicubic; FlyEgle's `data/ImagenetDataset.py` leaves torchvision's `Resize` at its
            default, which is bilinear.
    """

    name: str
    entry_norm: bool
    dense_reduction: bool
    block_position: bool
    ffn_inner_activation: bool
    pool_first: bool
    block_norm_eps: float
    interpolation: str


OFFICIAL = Family("official", True, False, False, False, False, 1e-6, "bicubic")
FLYEGLE = Family("flyegle", False, True, True, True, True, 1e-5, "bilinear")
FAMILIES = {family.name: family for family in (OFFICIAL, FLYEGLE)}


@dataclass(frozen=True)
class Variant:
    """One row of the paper's table: widths, depths and the input size it was trained at."""

    name: str
    img_size: int
    stem_width: int
    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    ffn_ratio: dict[str, float]
    """IRFFN expansion ratio per family; the hidden width is `int(dim * ratio)`."""


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            "ti", 160, 16, (46, 92, 184, 368), (2, 2, 10, 2), {"official": 3.6, "flyegle": 3.6}
        ),
        Variant(
            "xs", 192, 16, (52, 104, 208, 416), (3, 3, 12, 3), {"official": 3.77, "flyegle": 3.8}
        ),
        Variant("s", 224, 32, (64, 128, 256, 512), (3, 3, 16, 3), {"official": 4, "flyegle": 4}),
        Variant("b", 256, 38, (76, 152, 304, 608), (4, 4, 20, 4), {"official": 4, "flyegle": 4}),
    )
}


def get_variant(name: str) -> Variant:
    """Look up a variant by name; raises InputError that lists the known ones."""
    if name not in VARIANTS:
        raise InputError(f"unknown variant '{name}': choose one of {', '.join(VARIANTS)}")
    return VARIANTS[name]


def get_family(name: str) -> Family:
    """Look up a checkpoint family by name; raises InputError that lists the known ones."""
    if name not in FAMILIES:
        raise InputError(f"unknown family '{name}': choose one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def parse_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width); raises InputError unless both are multiples of 32 in range."""
    height, width = (size, size) if isinstance(size, int) else size
    if any(side <= 0 or side % SIZE_MULTIPLE for side in (height, width)):
        raise InputError(
            f"image size {height}x{width} will not do: height and width must be "
            f"multiples of {SIZE_MULTIPLE}, such as 160 or 192x256"
        )
    if max(height, width) > LARGEST_SIDE:
        raise InputError(
            f"image size {height}x{width} will not do: at most {LARGEST_SIDE}, such as 160"
        )
    return height, width
