"""The searched scale is never worse than absmax and is always one that storage holds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.formats.bnb4.format import BLOCK_FORMATS
from bitwright.rounding.kernels import trials
from bitwright.rounding.kernels.block_scales import ScaleTable
from bitwright.rounding.kernels.grid import Grid, TableGrid, UniformGrid, reciprocal
from bitwright.rounding.kernels.scale_search import search_scale
from bitwright.rounding.kernels.trials import best_trial, best_within


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


GRIDS: dict[str, Grid] = {
    "table": TableGrid.of(BLOCK_FORMATS["nf4-b32"].levels, torch.device("cpu")),
    "integers": UniformGrid(-8, 16, 8.0),
    "counts": UniformGrid(0, 4, 1.0),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shape", [(32, 1), (16, 300), (64, 129)])
def test_compiled_trials_find_what_tensor_operations_find(shape: tuple[int, int], grid: str) -> None:
    torch.manual_seed(sum(shape))
    weight, importance, value = torch.randn(shape), torch.rand(shape) + 0.01, torch.randn(5, shape[1])
    weight[:, 0], value[2] = 0.0, 0.0  # a block of zeros, a scale that storage has rounded to zero
    at, cost, fitted = best_trial(weight, importance, GRIDS[grid], value)
    wanted_at, wanted_cost, wanted_fitted = best_within(weight, importance, GRIDS[grid], value)
    assert torch.equal(at, wanted_at)
    assert torch.allclose(cost, wanted_cost, rtol=1e-5)
    assert torch.allclose(fitted, wanted_fitted, rtol=1e-4)


def test_trials_that_do_not_fit_into_memory_are_tried_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight, importance, value = torch.randn(32, 9), torch.rand(32, 9), torch.randn(7, 9)
    given = (weight, importance, GRIDS["table"], value)
    whole = best_within(*given)
    monkeypatch.setattr(trials, "CHUNK_ENTRIES", 3 * weight.numel())
    assert all(torch.equal(part, other) for part, other in zip(best_within(*given), whole, strict=True))
