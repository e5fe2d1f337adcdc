"""What a GPU plays back is what it would compute."""

import pytest
import torch
from torch import Tensor

from bitwright.formats.bnb4.format import BLOCK_FORMATS
from bitwright.rounding.kernels.error_feedback import feed_back_within
from bitwright.rounding.kernels.grid import TableGrid, UniformGrid
from bitwright.rounding.kernels.replay import replay

GRIDS = {
    "table": lambda device: TableGrid.of(BLOCK_FORMATS["nf4-b64"].levels, torch.device(device)),
    "uniform": lambda _: UniformGrid(-8, 16, 8.0),
}


def tensors(seed: int, device: str) -> list[Tensor]:
    torch.manual_seed(seed)
    found = [torch.randn(32, 48), torch.randn(32, 32), torch.rand(48), torch.randn(48)]
    return [tensor.to(device) for tensor in found]


@pytest.mark.parametrize("minimum", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_three_times_the_same_as_without(device: str, grid: str, minimum: bool) -> None:
    for seed in range(3):
        given, kept = (tensors(seed, device)[: 4 if minimum else 3] for _ in range(2))
        codes = replay(feed_back_within, GRIDS[grid](device), 1, *given)
        assert torch.equal(codes, feed_back_within(GRIDS[grid](device), *kept))
        assert torch.equal(given[0], kept[0])
        assert all(torch.equal(mine, other) for mine, other in zip(given[1:], kept[1:], strict=True))
