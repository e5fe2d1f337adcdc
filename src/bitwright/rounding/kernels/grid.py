"""Snapping numbers to the levels of a grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

CELLS = 1024  # cells of the look-up table on each side of zero
LEAST_SCALE = torch.finfo(torch.float32).tiny  # the inverse of a smaller one need not be finite


class Numbers(NamedTuple):
    """A grid on a processor as compiled code takes it: a row of integers, or a table of cells."""

    uniform: bool
    first: np.float32  # of the integers
    last: np.float32  # code
    unit: np.float32  # that the integers are divided by
    level_of_cell: np.ndarray  # float32, empty where uniform
    code_of_cell: np.ndarray  # uint8


@runtime_checkable
class Grid(Protocol):
    """Levels that weights snap to once they are divided by their scale. A cell is what stands for one of them on the way."""

    cell_dtype: ClassVar[torch.dtype]

    @property
    def symmetric(self) -> bool:
        """Whether the negative of each level is a level."""

    def cell(self, x: Tensor) -> Tensor:
        """Cell of each entry of ``x``, which is overwritten."""

    def level(self, cell: Tensor) -> Tensor:
        """The level of each cell, float32."""

    def code(self, cell: Tensor) -> Tensor:
        """The code of each cell, uint8."""

    def numbers(self) -> Numbers:
        """The same for compiled code."""


@dataclass(frozen=True)
class UniformGrid:
    """``count`` consecutive integers from ``first`` on, divided by ``unit``; the code of ``first`` is 0."""

    cell_dtype: ClassVar[torch.dtype] = torch.float32  # a cell is the code, not an integer type yet
    first: int
    count: int
    unit: float

    @property
    def symmetric(self) -> bool:
        return 2 * self.first + self.count == 1

    def cell(self, x: Tensor) -> Tensor:
        return x.mul_(self.unit).sub_(self.first).round_().clamp_(0, self.count - 1)

    def level(self, cell: Tensor) -> Tensor:
        return (cell + self.first).mul_(1 / self.unit)

    def code(self, cell: Tensor) -> Tensor:
        return cell.to(torch.uint8)

    def numbers(self) -> Numbers:
        first, last, unit = (np.float32(part) for part in (self.first, self.count - 1, self.unit))
        return Numbers(True, first, last, unit, np.empty(0, np.float32), np.empty(0, np.uint8))


@dataclass(frozen=True, eq=False)  # two of the same levels are one object: see ``of``
class TableGrid:
    """Any levels within [-1, 1], in ascending order, with the bounds between them and the code of each."""

    cell_dtype: ClassVar[torch.dtype] = torch.int32
    levels: Tensor  # float32 [L], ascending
    bounds: Tensor  # float32 [L - 1], midpoints
    code_of_level: Tensor  # uint8 [L], the code that stands for each ascending level
    level_of_cell: Tensor  # float32 [2 * CELLS + 1], the level nearest to the middle of each cell of [-1, 1]
    code_of_cell: Tensor  # uint8 [2 * CELLS + 1], its code
    symmetric: bool

    @classmethod
    @cache
    def of(cls, levels_by_code: tuple[float, ...], device: torch.device) -> TableGrid:
        """The grid of ``levels_by_code``, made once for each device."""
        levels = torch.tensor(levels_by_code, dtype=torch.float32, device=device)
        order = torch.argsort(levels)
        ascending = levels[order]
        symmetric = bool(torch.equal(ascending, -ascending.flip(0)))
        bounds = (ascending[:-1] + ascending[1:]) / 2
        middles = (torch.arange(2 * CELLS + 1, device=device) - CELLS + 0.5) / CELLS
        index = torch.bucketize(middles, bounds)
        by_level = order.to(torch.uint8)
        return cls(ascending, bounds, by_level, ascending[index], by_level[index], symmetric)

    def nearest(self, x: Tensor) -> Tensor:
        """Index of the nearest level for each entry of ``x`` (any shape); a tie takes the lower level."""
        return torch.bucketize(x, self.bounds, out_int32=True)

    def cell(self, x: Tensor) -> Tensor:
        """Cell of each entry of ``x``, which is overwritten: a table look-up, many times faster than ``nearest``.

        Its level is the nearest one except within 1 / (2 CELLS) of a bound, where both neighbours are equally near
        for every purpose but bit-equality with another library.
        """
        return x.mul_(CELLS).add_(CELLS).clamp_(0, 2 * CELLS).to(torch.int32)

    def level(self, cell: Tensor) -> Tensor:
        return self.level_of_cell.index_select(0, cell.reshape(-1)).reshape(cell.shape)

    def code(self, cell: Tensor) -> Tensor:
        return self.code_of_cell.index_select(0, cell.reshape(-1)).reshape(cell.shape)

    def numbers(self) -> Numbers:
        zero = np.float32(0)
        return Numbers(False, zero, zero, zero, self.level_of_cell.numpy(), self.code_of_cell.numpy())


def reciprocal(scale: Tensor) -> Tensor:
    """1 / scale, and 0 where the scale is 0 (an all-zero block), or so small that nothing finite is its inverse."""
    return torch.where(scale.abs() < LEAST_SCALE, torch.zeros_like(scale), 1.0 / scale)
