"""Compiled columns against the tensor operations that a GPU does."""

import errno

import pytest
import torch
from numba.core import caching

from bitwright.formats.bnb4.format import BLOCK_FORMATS
from bitwright.rounding.bnb4 import BNB4
from bitwright.rounding.ggml import GGML
from bitwright.rounding.group import GROUP
from bitwright.rounding.kernels import strips
from bitwright.rounding.kernels.coordinate_descent import sweep_within
from bitwright.rounding.kernels.error_feedback import Feedback, feed_back_within
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


def test_where_no_folder_can_be_written_it_is_compiled_for_this_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])

    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x + x

    assert strips._compiled(doubled)(21) == 42


def test_a_full_disk_keeps_nothing_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)

    @strips._compiled
    def doubled(x: int) -> int:
        return x + x

    @strips._compiled
    def quadrupled(x: int) -> int:
        return doubled(doubled(x))

    with pytest.raises(OSError, match="No space"):
        strips._compiled(lambda x: x)(1)
    assert strips._kept_or_not(lambda: quadrupled(3)) == 12


def test_whatever_lies_in_memory_is_compiled_once() -> None:
    """Each further layout would be compiled on its own, in the middle of a run and where an interrupt is lost."""
    feedback = Feedback.of(inner(256))
    for rounder, names in ((BNB4, ("nf4-b32-dq", "nf4-b64")), (GROUP, ("w3-g32", "w4-g64")), (GGML, ("q4_k", "q3_k", "mxfp4"))):
        rounder.calibrated(torch.randn(20, 256), feedback, [rounder.formats[name] for name in names])
    assert [len(kernel.signatures) for kernel in (strips._feed_back, strips._sweep)] == [1, 1]
