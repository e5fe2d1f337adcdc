"""Scales of a weight as bitsandbytes stores them: every scale that is set comes back as it will decode."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from bitwright.formats.bnb4.codes import BlockCodes, NestedScales, PlainScales, dynamic_map
from bitwright.formats.bnb4.format import NESTED_BLOCK_SIZE, BlockFormat
from bitwright.rounding.kernels.grid import reciprocal

LIBRARY_CELLS = (2**16 - 1) / 2  # per unit, in the CPU kernels of bitsandbytes 0.50


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
        self.format, self.size = format, format.block_size
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

    def rows(self, part: slice) -> ScaleTable:
        """The table of some rows: what is put there is put here."""
        view = copy(self)
        view.stored, view.value = self.stored[part], self.value[part]
        view.shape = view.value.shape
        if self.nested:
            view._nested_of, view._inverse_of = self._nested_of[part], self._inverse_of[part]
        return view

    def codes(self, code: Tensor) -> BlockCodes:
        """``code`` [K, N] with the scales as they are now."""
        return BlockCodes(self.format, (code.shape[1], code.shape[0]), code.t().reshape(-1), self.scales())

    def scales(self) -> PlainScales | NestedScales:
        if self.nested:
            return NestedScales(self.stored.reshape(-1), self.nested_scale, self.offset)
        return PlainScales(self.stored.reshape(-1))
