"""The searched scale is never worse than absmax and is always one that storage holds."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.formats.bnb4.format import BLOCK_FORMATS
from bitwright.rounding.kernels.block_scales import ScaleTable
from bitwright.rounding.kernels.grid import TableGrid, reciprocal
from bitwright.rounding.kernels.scale_search import search_scale


def cost(weight: torch.Tensor, importance: torch.Tensor, grid: TableGrid, scale: torch.Tensor) -> torch.Tensor:
    decoded = grid.levels[grid.nearest(weight * reciprocal(scale))] * scale
    return (importance * (weight - decoded).square()).sum(0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["nf4-b32", "fp4-b32", "nf4-b32-dq", "fp4-b32-dq"]))
def test_beats_absmax_and_is_storable(seed: int, name: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    format = BLOCK_FORMATS[name]
    weight = torch.randn(32, 20, generator=generator) ** 3
    importance = torch.rand(32, 1, generator=generator) + 0.01
    grid = TableGrid.of(format.levels, weight.device)
    table = ScaleTable(format, weight.abs().amax(0)[:, None])
    stored, value = search_scale(weight, importance, grid, lambda wanted: table.snap(wanted, 0))
    table.put(0, stored, value)
    assert torch.equal(table.scales().decode(), value)
    _, absmax = table.snap(weight.abs().amax(0), 0)
    slack = 1e-3 * (importance * weight.square()).sum(0)  # the look-up table is blind within a cell of a bound
    assert bool((cost(weight, importance, grid, value) <= cost(weight, importance, grid, absmax) + slack).all())


def test_an_asymmetric_grid_may_turn_a_block_around() -> None:
    format = BLOCK_FORMATS["nf4-b32"]
    grid = TableGrid.of(format.levels, torch.device("cpu"))
    weight = -grid.levels.repeat(2)[:, None] * 0.7  # a mirrored copy of the grid: exact with a negative scale only
    _, value = search_scale(weight, torch.ones(32, 1), grid, lambda s: (s, s))
    assert torch.allclose(value, torch.tensor([-0.7]))
    assert float(cost(weight, torch.ones(32, 1), grid, value)) < 1e-10
