"""Codes and scales of one weight exactly as a file stores them, and their decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bitwright.formats.base import Codes
from bitwright.formats.bnb4.format import NESTED_BLOCK_SIZE, BlockFormat

CHUNK_ENTRIES = 1 << 20  # weights worked on at once, so that temporaries stay small beside the weight


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

    def tensors(self) -> dict[str, Tensor]:
        return {"scale": self.scale}

    def decode(self) -> Tensor:
        return self.scale


@dataclass(frozen=True)
class NestedScales:
    """Scales under double quantization: scale = map[code] * nested_scale[block // 256] + offset."""

    code: Tensor  # uint8 [blocks]
    nested_scale: Tensor  # float32 [ceil(blocks / 256)]
    offset: float

    def tensors(self) -> dict[str, Tensor]:
        offset = torch.tensor([self.offset], dtype=torch.float64)
        return {"scale_code": self.code, "nested_scale": self.nested_scale, "offset": offset}

    def decode(self) -> Tensor:
        levels = dynamic_map().to(self.code.device)
        nested = self.nested_scale.repeat_interleave(NESTED_BLOCK_SIZE)[: self.code.numel()]
        return levels[self.code.int()] * nested + self.offset


@dataclass(frozen=True)
class BlockCodes(Codes):
    """One weight in a block format: a 4-bit code per weight and the scales of its blocks."""

    parts: ClassVar[tuple[str, ...]] = ("code", "scale", "scale_code", "nested_scale", "offset")
    common: ClassVar[tuple[str, ...]] = ("offset",)
    gpu_tile: ClassVar[int] = 1 << 26  # the kernel needs nothing beside its result

    format: BlockFormat
    shape: tuple[int, ...]
    code: Tensor  # uint8 [prod(shape)], values 0..15
    scales: PlainScales | NestedScales

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Weights [*shape]: level times scale in float32, then one rounding to ``dtype``."""
        levels = torch.tensor(self.format.levels, dtype=torch.float32, device=self.code.device)
        scales, size = self.scales.decode(), self.format.block_size
        values = torch.empty(self.code.shape, dtype=dtype, device=self.code.device)
        step = max(1, CHUNK_ENTRIES // size)  # blocks
        for first in range(0, len(scales), step):
            part = slice(first * size, (first + step) * size)
            code = self.code[part]
            scale = scales[first : first + step].repeat_interleave(size)[: len(code)]
            values[part] = levels.index_select(0, code.int()).mul_(scale)
        return values.reshape(self.shape)

    @classmethod
    def decode_packed(cls, format: Any, shape: tuple[int, ...], tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Two weights a byte from a table of pairs, times the scale of their block: a third of the time of the way by codes."""
        if tensors["code"].is_cuda:
            return by_kernel(format, shape, tensors, dtype)
        scales = scales_of(format, tensors).decode()
        pairs = _pairs(format.levels, scales.device).index_select(0, tensors["code"].int())
        values = pairs.reshape(-1)[: prod(shape)].reshape(len(scales), -1)
        return values.mul_(scales[:, None]).to(dtype).reshape(shape)

    @property
    def chosen(self) -> Tensor:
        return self.code

    def tensors(self) -> dict[str, Tensor]:
        return {"code": pack_nibbles(self.code)} | self.scales.tensors()

    @classmethod
    def from_tensors(cls, format: Any, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> Self:
        return cls(format, shape, unpack_nibbles(tensors["code"], prod(shape)), scales_of(format, tensors))


def by_kernel(format: BlockFormat, shape: tuple[int, ...], tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The same by the kernel of bitsandbytes, in one pass; the GPU is not waited for, so the offset stays there."""
    import bitsandbytes  # noqa: F401  (which makes the kernel known to torch)

    if format.double_quant:
        scales = NestedScales(tensors["scale_code"], tensors["nested_scale"], 0.0).decode() + tensors["offset"].float()
    else:
        scales = tensors["scale"]
    decode = torch.ops.bitsandbytes.dequantize_4bit.default
    values: Tensor = decode(tensors["code"], scales, format.block_size, format.grid, shape, dtype)
    return values


def scales_of(format: BlockFormat, tensors: Mapping[str, Tensor]) -> PlainScales | NestedScales:
    """The scales among the tensors of a packed weight."""
    if format.double_quant:
        return NestedScales(tensors["scale_code"], tensors["nested_scale"], float(tensors["offset"]))
    return PlainScales(tensors["scale"])


@cache
def _pairs(levels: tuple[float, ...], device: torch.device) -> Tensor:
    """The two levels that each byte stands for, float32 [256, 2]."""
    byte, level = torch.arange(256, device=device), torch.tensor(levels, dtype=torch.float32, device=device)
    return torch.stack([level[byte >> 4], level[byte & 0xF]], 1)


def pack_nibbles(code: Tensor) -> Tensor:
    """Bytes [ceil(n / 2)] from 4-bit codes [n]: the first of each pair in the high half, as bitsandbytes does."""
    padded = torch.nn.functional.pad(code, (0, code.numel() % 2))
    return (padded[::2] << 4) | padded[1::2]


def unpack_nibbles(packed: Tensor, count: int) -> Tensor:
    """The ``count`` 4-bit codes in ``packed``."""
    return torch.stack([packed >> 4, packed & 0xF], 1).reshape(-1)[:count]
