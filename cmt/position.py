"""Resizing position tables to another input size: bicubic, corners not aligned.

The official tables are resized over their query grid and then over their key grid; the
FlyEgle tables, which are indexed by relative offset, over their two offsets.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate

Grid = tuple[int, int]


def _bicubic(x: Tensor, size: Grid) -> Tensor:
    return interpolate(x, size=size, mode="bicubic", align_corners=False)


def resize_stage_table(table: Tensor, old: Grid, new: Grid, reduction: int) -> Tensor:
    """(heads, old queries, old keys) -> (heads, new queries, new keys), float32.

    Args:
        table: absolute position table of a stage.
        old, new: query grids (height, width) before and after.
        reduction: key grids are the query grids divided by this.
    """
    if old == new:
        return table
    heads, _, old_keys = table.shape
    over_queries = _bicubic(table.transpose(1, 2).reshape(heads, old_keys, *old), new)
    keys_old = (old[0] // reduction, old[1] // reduction)
    keys_new = (new[0] // reduction, new[1] // reduction)
    per_query = over_queries.flatten(2).transpose(1, 2).reshape(heads, -1, *keys_old)
    return _bicubic(per_query, keys_new).flatten(2)


def resize_relative_table(table: Tensor, new: Grid) -> Tensor:
    """(2H-1, 2W-1) -> (2H'-1, 2W'-1) for a new grid (H', W'), float32."""
    size = (2 * new[0] - 1, 2 * new[1] - 1)
    if tuple(table.shape) == size:
        return table
    return _bicubic(table[None, None], size)[0, 0]
