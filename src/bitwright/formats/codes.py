"""Codes and scales of one weight exactly as a file stores them, and their decoding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor

from bitwright.formats.format import NESTED_BLOCK_SIZE, BlockFormat


@cache
def dynamic_map() -> Tensor:
    """The signed dynamic 8-bit map [256], ascending: seven decades, linear steps doubling with each (arXiv 1511.04561).

    Computed in float32 with the same operations as bitsandbytes, so that the values agree to the last bit.
    """
    levels = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32)
        means = (edges[:-1] + edges[1:]) / 2.0
        levels += (10 ** (-6 + decade) * means).tolist() + (-(10 ** (-6 + decade)) * means).tolist()
    return torch.tensor(sorted(levels), dtype=torch.float32)


@dataclass(frozen=True)
class PlainScales:
    """One float32 scale per block."""

    scale: Tensor  # float32 [blocks]

    def decode(self) -> Tensor:
        return self.scale


@dataclass(frozen=True)
class NestedScales:
    """Scales under double quantization: scale = map[code] * nested_scale[block // 256] + offset."""

    code: Tensor  # uint8 [blocks]
    nested_scale: Tensor  # float32 [ceil(blocks / 256)]
    offset: float

    def decode(self) -> Tensor:
        levels = dynamic_map().to(self.code.device)
        nested = self.nested_scale.repeat_interleave(NESTED_BLOCK_SIZE)[: self.code.numel()]
        return levels[self.code.int()] * nested + self.offset


@dataclass(frozen=True)
class Codes:
    """One weight in a block format: a 4-bit code per weight and the scales of its blocks."""

    format: BlockFormat
    shape: tuple[int, ...]
    code: Tensor  # uint8 [prod(shape)], values 0..15
    scales: PlainScales | NestedScales

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Weights [*shape]: level times scale in float32, then one rounding to ``dtype``."""
        levels = torch.tensor(self.format.levels, dtype=torch.float32, device=self.code.device)
        return (levels[self.code.int()] * self.scale_of_each_weight()).to(dtype).reshape(self.shape)

    def scale_of_each_weight(self) -> Tensor:
        """Scales [prod(shape)], each block's repeated over its weights."""
        return self.scales.decode().repeat_interleave(self.format.block_size)[: prod(self.shape)]
