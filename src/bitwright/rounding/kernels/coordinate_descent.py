"""Coordinate descent: sweep scales and codes again, each at its best given all others (QuantEase, arXiv 2309.01885)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from bitwright.rounding.kernels.grid import Grid, reciprocal
from bitwright.rounding.kernels.replay import replay
from bitwright.rounding.kernels.strips import sweep_strip

PANEL = 256  # columns whose pull is taken in one product: a block's alone is too flat to be quick


def pulls(
    moment: Float32[Tensor, "K K"], error: Float32[Tensor, "K N"], size: int
) -> Iterator[tuple[slice, Float32[Tensor, "B N"]]]:
    """Blocks of ``size`` columns and what pulls at each: S e, S = ``moment``. ``error`` e may change there meanwhile."""
    width = max(size, PANEL // size * size)
    for start in range(0, len(error), width):
        stop = min(start + width, len(error))
        pull = moment[start:stop] @ error
        for first in range(start, stop, size):
            block = slice(first, first + size)
            before = error[block].clone()
            yield block, pull[first - start : block.stop - start]
            if block.stop < stop:
                pull[block.stop - start :].addmm_(moment[block.stop : stop, block], error[block] - before)


def sweep_columns(
    grid: Grid,
    target: Float32[Tensor, "B N"],
    error: Float32[Tensor, "B N"],
    pull: Float32[Tensor, "B N"],
    inner: Float32[Tensor, "B B"],
    scale: Float32[Tensor, " N"],
) -> UInt8[Tensor, "B N"]:
    """Codes [B, N] of one block, each column at its best given all others; ``error`` follows in place.

    ``target`` [B, N] is what scale * level has to meet, ``error`` what it misses so far, ``pull`` = S e at these columns, and
    ``inner`` [B, B] the block's own part of S.
    """
    if error.device.type == "cpu":
        return sweep_strip(grid, error, target, pull, inner, scale)
    return replay(sweep_within, grid, 1, error, target, pull, inner, scale)


def sweep_within(grid: Grid, error: Tensor, target: Tensor, pull: Tensor, inner: Tensor, scale: Tensor) -> Tensor:
    """The same in tensor operations."""
    inverse, pivot = reciprocal(scale), inner.diagonal()
    cells = torch.empty(target.shape, dtype=grid.cell_dtype, device=target.device)
    for j in range(len(target)):
        row = error[j]
        cell = grid.cell((target[j] - row + pull[j] / pivot[j]) * inverse)
        found = target[j] - grid.level(cell) * scale
        pull[j + 1 :].addr_(inner[j, j + 1 :], found - row)
        error[j] = found
        cells[j] = cell
    return grid.code(cells)
