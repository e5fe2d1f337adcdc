"""Snapping numbers to the levels of a grid, and scales to the levels their storage has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from bitwright.formats.codes import NestedScales, PlainScales, dynamic_map
from bitwright.formats.format import NESTED_BLOCK_SIZE, BlockFormat

LIBRARY_CELLS = (2**16 - 1) / 2  # per unit, in the CPU kernels of bitsandbytes 0.50
CELLS = 1024  # cells of the look-up table on each side of zero


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


@dataclass(frozen=True)
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
    def of(cls, levels_by_code: tuple[float, ...], device: torch.device) -> TableGrid:
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


def reciprocal(scale: Tensor) -> Tensor:
    """1 / scale, and 0 where the scale is 0 (an all-zero block)."""
    return torch.where(scale == 0, torch.zeros_like(scale), 1.0 / scale)


class ScaleTable:
    """The scales of one weight as storage holds them: every scale that is set comes back as it will decode.

    Blocks are numbered row-major, block = row * groups + group. Under double quantization a scale is an 8-bit level of
    the dynamic map times the second-level scale of its 256 blocks, which ``fit`` fixes beforehand.
    """

    def __init__(self, format: BlockFormat, wanted: Tensor, offset: float = 0.0, as_library: bool = False) -> None:
        """``wanted`` [rows, groups] are the scales to make room for; they are also stored as first values.

        ``as_library``: bitsandbytes on a CPU finds 8-bit levels in a table of 2^16 cells, so repeat that rounding.
        """
        self.cells = LIBRARY_CELLS if as_library and wanted.device.type == "cpu" else None
        wanted = wanted.float()
        self.shape, self.offset, self.nested = wanted.shape, offset, format.double_quant
        if self.nested:
            flat = (wanted - offset).abs().reshape(-1)
            padded = torch.nn.functional.pad(flat, (0, -flat.numel() % NESTED_BLOCK_SIZE))
            self._set_nested(padded.reshape(-1, NESTED_BLOCK_SIZE).amax(1))
        self.stored = torch.zeros(self.shape, dtype=torch.uint8 if self.nested else torch.float32, device=wanted.device)
        self.value = torch.zeros(self.shape, dtype=torch.float32, device=wanted.device)
        self.put(slice(None), *self.snap(wanted, slice(None)))

    @classmethod
    def of(cls, format: BlockFormat, scales: PlainScales | NestedScales, n_rows: int) -> ScaleTable:
        """The table that holds ``scales``, to be changed further."""
        value = scales.decode().reshape(n_rows, -1)
        table = cls(format, value)
        if isinstance(scales, NestedScales):
            table.offset = scales.offset
            table._set_nested(scales.nested_scale)
            table.stored = scales.code.reshape(n_rows, -1).clone()
        table.value = value.clone()
        return table

    def _set_nested(self, nested_scale: Tensor) -> None:
        self._levels = dynamic_map().to(nested_scale.device)
        self._bounds = (self._levels[:-1] + self._levels[1:]) / 2
        self.nested_scale = nested_scale
        each = nested_scale.repeat_interleave(NESTED_BLOCK_SIZE)[: self.shape.numel()]
        self._nested_of = each.reshape(self.shape)
        self._inverse_of = reciprocal(self._nested_of)

    def snap(self, wanted: Tensor, group: int | slice) -> tuple[Tensor, Tensor]:
        """The storable scale nearest to each of ``wanted`` [rows] in ``group``: (what is stored, what it decodes to)."""
        if not self.nested:
            return wanted, wanted
        x = (wanted - self.offset) * self._inverse_of[:, group]
        if self.cells:
            x = ((x + 1) * self.cells + 0.5).floor() / self.cells - 1
        index = torch.bucketize(x, self._bounds, out_int32=True)
        return index.to(torch.uint8), self._levels[index] * self._nested_of[:, group] + self.offset

    def put(self, group: int | slice, stored: Tensor, value: Tensor) -> None:
        self.stored[:, group] = stored
        self.value[:, group] = value

    def scales(self) -> PlainScales | NestedScales:
        if self.nested:
            return NestedScales(self.stored.reshape(-1), self.nested_scale, self.offset)
        return PlainScales(self.stored.reshape(-1))
