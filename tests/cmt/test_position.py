"""Position tables at another input size than the one they were trained at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cmt import FAMILIES, InputError, load_model
from cmt.layouts import to_public_layout
from cmt.network import CMT, RelativeTable
from cmt.position import resize_relative_table, resize_stage_table
from cmt.variants import REDUCTIONS

Grid = tuple[int, int]
GRIDS = [((8, 8), (16, 16)), ((16, 16), (8, 24)), ((24, 24), (8, 8)), ((8, 8), (40, 16))]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def centres(count: int) -> Tensor:
    """Where the cells of a grid lie on a side of length 1."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def smooth_stage_table(queries: Grid, reduction: int) -> Tensor:
    """A function of where query and key lie, different along each of the four axes."""
    keys = (queries[0] // reduction, queries[1] // reduction)
    qy, qx = centres(queries[0])[:, None, None, None], centres(queries[1])[:, None, None]
    ky, kx = centres(keys[0])[:, None], centres(keys[1])
    head0 = torch.sin(2 * qy) + 0.5 * qx**2 + torch.cos(ky) - 0.3 * kx + qy * kx
    head1 = torch.cos(2 * qx) * (1 + ky) + 0 * (qy + kx)
    return torch.stack([head0.expand(*queries, *keys), head1]).flatten(3, 4).flatten(1, 2).float()


def smooth_relative_table(grid: Grid) -> Tensor:
    """A function of the offset, in units of the image's height and width."""
    dy = torch.arange(1 - grid[0], grid[0], dtype=torch.float64)[:, None] / grid[0]
    dx = torch.arange(1 - grid[1], grid[1], dtype=torch.float64) / grid[1]
    return (torch.sin(2 * dy) + 0.5 * torch.cos(2 * dx) + dy * dx).float()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_same_grid_changes_nothing(reduction: int) -> None:
    table = noise(2, 64, 64 // reduction**2)
    assert torch.equal(resize_stage_table(table, (8, 8), (8, 8), reduction), table)
    relative = noise(15, 15)
    assert torch.equal(resize_relative_table(relative, (8, 8)), relative)


@pytest.mark.parametrize(("old", "new"), GRIDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_constant_tables_stay_constant(old: Grid, new: Grid, reduction: int) -> None:
    keys = old[0] * old[1] // reduction**2
    heads = torch.tensor([1.5, -3.0])[:, None, None]
    resized = resize_stage_table(heads.expand(2, old[0] * old[1], keys), old, new, reduction)
    assert resized.shape == (2, new[0] * new[1], new[0] * new[1] // reduction**2)
    torch.testing.assert_close(resized, heads.expand_as(resized))
    relative = resize_relative_table(torch.full((2 * old[0] - 1, 2 * old[1] - 1), 2.5), new)
    torch.testing.assert_close(relative, torch.full((2 * new[0] - 1, 2 * new[1] - 1), 2.5))


@pytest.mark.parametrize(("old", "new"), [((16, 16), (24, 24)), ((24, 24), (16, 32))])
@pytest.mark.parametrize("reduction", [1, 2])
def test_a_smooth_stage_table_is_the_same_function_at_another_size(
    old: Grid, new: Grid, reduction: int
) -> None:
    resized = resize_stage_table(smooth_stage_table(old, reduction), old, new, reduction)
    error = (resized - smooth_stage_table(new, reduction)).abs()
    # Borders are repeated outwards, which flattens the slope there.
    assert error.mean() < 0.01
    assert error.max() < 0.1


@pytest.mark.parametrize(("old", "new"), [((16, 16), (24, 24)), ((24, 24), (16, 32))])
def test_a_smooth_relative_table_is_the_same_function_at_another_size(old: Grid, new: Grid) -> None:
    resized = resize_relative_table(smooth_relative_table(old), new)
    error = (resized - smooth_relative_table(new)).abs()
    assert error.mean() < 0.02
    assert error.max() < 0.1


def test_the_zero_offset_stays_in_the_middle() -> None:
    table = -smooth_relative_table((8, 8)).mul(0)
    table[7, 7] = 1
    resized = resize_relative_table(table, (14, 6))
    assert resized.argmax() == 13 * 11 + 5
    torch.testing.assert_close(resized, resized.flip(0, 1))


def test_relative_table_reads_the_offset_from_query_to_key() -> None:
    height, width = 4, 6
    position = RelativeTable((height, width), 2)
    with torch.no_grad():
        position.table.copy_(noise(2 * height - 1, 2 * width - 1))
    bias = position()
    assert bias.shape == (1, 24, 6)
    for query in range(24):
        for key in range(6):
            dy = key // width - query // width
            dx = key % width - query % width
            expected = position.table[dy + height - 1, dx + width - 1]
            assert bias[0, query, key] == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [32, 96, (64, 96), (128, 32), (32, 64)])
def test_a_model_runs_at_other_sizes_than_it_was_trained_at(
    family: str, size: int | Grid, make_tiny: Callable[..., CMT], tmp_path: Path
) -> None:
    save_file(to_public_layout(make_tiny(family, 64)), tmp_path / "w.safetensors")
    model = load_model("tiny", tmp_path / "w.safetensors", size)
    height, width = (size, size) if isinstance(size, int) else size
    assert model.img_size == (height, width)
    with torch.no_grad():
        logits = model(noise(2, 3, height, width))
    assert logits.shape == (2, 5)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [None, 64, (64, 64)])
def test_at_the_trained_size_the_tables_are_bit_identical(
    family: str, size: int | Grid | None, make_tiny: Callable[..., CMT], tmp_path: Path
) -> None:
    trained = make_tiny(family, 64)
    save_file(to_public_layout(trained), tmp_path / "w.safetensors")
    loaded = load_model("tiny", tmp_path / "w.safetensors", size).state_dict()
    tables = [key for key in loaded if ".positions." in key]
    assert len(tables) == (5 if family == "flyegle" else 4)
    assert all(torch.equal(loaded[key], trained.state_dict()[key]) for key in tables)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_tables_change_with_the_size(
    family: str, make_tiny: Callable[..., CMT], tmp_path: Path
) -> None:
    trained = make_tiny(family, 64)
    save_file(to_public_layout(trained), tmp_path / "w.safetensors")
    loaded = load_model("tiny", tmp_path / "w.safetensors", 96).state_dict()
    for key, value in trained.state_dict().items():
        assert torch.equal(loaded[key], value) != (".positions." in key), key


@pytest.mark.parametrize("size", [33, 48, 0, -64, (64, 40), (40, 64)])
def test_a_size_that_is_no_multiple_of_32_is_refused(
    size: int | Grid, make_tiny: Callable[..., CMT], tmp_path: Path
) -> None:
    save_file(to_public_layout(make_tiny("official", 64)), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="multiples of 32"):
        load_model("tiny", tmp_path / "w.safetensors", size)
