"""Frozen weights that a product can be taken with: packed ones, of which some rows are decoded at a time, and plain ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bitwright.formats.base import Packed
from bitwright.formats.families import CODES

TILE_ENTRIES = 1 << 22  # weights that are decoded at once: 16 MiB in float32


class FrozenWeight(nn.Module):
    """A matrix W [N, K] without a gradient."""

    n_rows: int
    n_cols: int

    @abstractmethod
    def tiles(self, dtype: torch.dtype, at_most: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """Some rows at a time: which, and their values [rows, K] in ``dtype``. ``at_most`` so many, where it is more than 0 and
        the format can part them."""

    def times(self, x: Tensor) -> Tensor:
        """x W^T [T, N] for ``x`` [T, K], in the type of ``x``."""
        tiles = self.tiles(x.dtype)
        rows, tile = next(tiles)
        first = x @ tile.t()
        if rows.stop == self.n_rows:
            return first
        y = x.new_empty(len(x), self.n_rows)
        y[:, rows] = first
        for rows, tile in tiles:
            y[:, rows] = x @ tile.t()
        return y

    def back(self, g: Tensor) -> Tensor:
        """g W [T, K] for ``g`` [T, N]; several tiles are summed in float32."""
        tiles = self.tiles(g.dtype)
        rows, tile = next(tiles)
        first = g[:, rows] @ tile
        if rows.stop == self.n_rows:
            return first
        total = first.float()
        for rows, tile in tiles:
            total += g[:, rows] @ tile
        return total.to(g.dtype)


class PackedWeight(FrozenWeight):
    """Codes and scales as files keep them, and nothing else."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.format, (self.n_rows, self.n_cols) = packed.format, packed.shape
        self.codes = CODES[type(packed.format)]
        self.common = self.codes.common
        for name, tensor in packed.tensors.items():
            self.register_buffer(f"packed_{name}", tensor, persistent=False)
        self._names = tuple(packed.tensors)
        self.rows_together = packed.format.rows_together(self.n_cols)

    @property
    def packed(self) -> Packed:
        tensors = {name: getattr(self, f"packed_{name}") for name in self._names}
        return Packed(self.format, (self.n_rows, self.n_cols), tensors)

    def rows_at_once(self, at_most: int = 0) -> int:
        """Of how many rows a tile is made, where the weight lies; of ``at_most`` so many, where that is more than 0."""
        on_cpu = getattr(self, f"packed_{self._names[0]}").device.type == "cpu"
        rows = (TILE_ENTRIES if on_cpu else self.codes.gpu_tile) // self.n_cols
        return max(1, (min(rows, at_most) if at_most else rows) // self.rows_together) * self.rows_together

    def tiles(self, dtype: torch.dtype, at_most: int = 0) -> Iterator[tuple[slice, Tensor]]:
        whole, at_once = self.packed, self.rows_at_once(at_most)
        for start in range(0, self.n_rows, at_once):
            stop = min(start + at_once, self.n_rows)
            part = whole.rows(start, stop, self.common)
            yield slice(start, stop), self.codes.decode_packed(part.format, part.shape, part.tensors, dtype)


class PlainWeight(FrozenWeight):
    """A weight in 16 or 32 bit, cast some rows at a time where it is multiplied in another type."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.n_rows, self.n_cols = value.shape
        self.register_buffer("value", value, persistent=False)
        self.value: Tensor

    def tiles(self, dtype: torch.dtype, at_most: int = 0) -> Iterator[tuple[slice, Tensor]]:
        rows = self.n_rows if self.value.dtype is dtype else max(1, TILE_ENTRIES // self.n_cols)
        rows = min(rows, at_most) if at_most else rows
        for start in range(0, self.n_rows, rows):
            part = slice(start, min(start + rows, self.n_rows))
            yield part, self.value[part].to(dtype)


class PickedWeight(FrozenWeight):
    """Some rows of another weight, decoded with it: ``rows`` int64 [N], rising."""

    def __init__(self, whole: FrozenWeight, rows: Tensor) -> None:
        super().__init__()
        self.n_rows, self.n_cols = len(rows), whole.n_cols
        self.whole, self.rows = whole, rows

    def tiles(self, dtype: torch.dtype, at_most: int = 0) -> Iterator[tuple[slice, Tensor]]:
        done = 0
        for part, tile in self.whole.tiles(dtype):
            here = self.rows[(self.rows >= part.start) & (self.rows < part.stop)] - part.start
            for some in here.split(at_most or self.n_rows) if len(here) else ():
                yield slice(done, done := done + len(some)), tile[some]
