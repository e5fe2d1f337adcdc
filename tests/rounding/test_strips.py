"""Compiled columns against the tensor operations that a GPU does."""

import pytest
import torch

from bitwright.formats.bnb4.format import BLOCK_FORMATS
from bitwright.rounding.kernels.coordinate_descent import sweep_within
from bitwright.rounding.kernels.error_feedback import feed_back_within
from bitwright.rounding.kernels.grid import Grid, TableGrid, UniformGrid
from bitwright.rounding.kernels.strips import feed_back_strip, sweep_strip

GRIDS: dict[str, Grid] = {
    "table": TableGrid.of(BLOCK_FORMATS["nf4-b64"].levels, torch.device("cpu")),
    "lopsided": TableGrid.of((-1.0, -0.3, 0.1, 0.7), torch.device("cpu")),
    "integers": UniformGrid(-8, 16, 8.0),
    "counts": UniformGrid(0, 4, 1.0),
}


def inner(size: int) -> torch.Tensor:
    x = torch.randn(200, size)
    return x.t() @ x / 200 + 0.1 * torch.eye(size)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("minimum", [False, True])
@pytest.mark.parametrize("shape", [(32, 1), (32, 300), (64, 128), (8, 1000)])
def test_error_feedback(shape: tuple[int, int], minimum: bool, grid: str) -> None:
    torch.manual_seed(sum(shape))
    block, follow = torch.randn(shape), 0.1 * torch.randn(shape[0], shape[0])
    scale = torch.rand(shape[1])
    scale[0] = 0.0  # a block of zeros
    given = (follow, scale, torch.randn(shape[1])) if minimum else (follow, scale)
    mine, other = block.clone(), block.clone()
    codes = feed_back_strip(GRIDS[grid], mine, *given)
    assert torch.equal(codes, feed_back_within(GRIDS[grid], other, *given))
    assert torch.allclose(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shape", [(32, 1), (32, 300), (64, 128)])
def test_coordinate_descent(shape: tuple[int, int], grid: str) -> None:
    torch.manual_seed(sum(shape))
    target, pull, moment, scale = torch.randn(shape), torch.randn(shape), inner(shape[0]), torch.rand(shape[1])
    mine = 0.1 * torch.randn(shape)
    other = mine.clone()
    codes = sweep_strip(GRIDS[grid], mine, target, pull.clone(), moment, scale)
    assert torch.equal(codes, sweep_within(GRIDS[grid], other, target, pull.clone(), moment, scale))
    assert torch.allclose(mine, other, rtol=1e-5, atol=1e-5)
