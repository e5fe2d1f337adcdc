"""Integers and scales of one weight in a group format, their packing in words, and their decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor

from bitwright.formats.base import Codes
from bitwright.formats.group.format import GroupFormat

WORD = 32  # bits
CHUNK_ENTRIES = 1 << 20  # codes that are packed or unpacked at once


@dataclass(frozen=True)
class GroupCodes(Codes):
    """One weight [N, K] in groups: G = K / group_size of them in a row."""

    parts: ClassVar[tuple[str, ...]] = ("packed", "scale")

    format: GroupFormat
    shape: tuple[int, ...]
    code: Tensor  # uint8 [N, K], the integer minus the lowest one
    scale: Tensor  # bfloat16 [N, G]

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Weights [N, K]: integer times scale in float32, which is exact, then one rounding to ``dtype``."""
        values = (self.code.to(torch.float32) + self.format.lowest).reshape(*self.scale.shape, self.format.group_size)
        return values.mul_(self.scale.float()[:, :, None]).reshape(self.shape).to(dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {"packed": pack_words(self.code, self.format.bits), "scale": self.scale}

    @classmethod
    def from_tensors(cls, format: Any, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> Self:
        code = unpack_words(tensors["packed"], format.bits, shape[1])
        return cls(format, shape, code, tensors["scale"])


def pack_words(code: UInt8[Tensor, "N K"], bits: int) -> Int32[Tensor, "N W"]:
    """Each row of uint8 [N, K] as one little-endian stream of ``bits`` a code, int32 [N, ceil(K bits / 32)].

    >>> pack_words(torch.tensor([[1, 2, 3]], dtype=torch.uint8), 4).tolist()
    [[801]]
    """
    rows = max(1, CHUNK_ENTRIES // code.shape[1])
    return torch.cat([_pack(part, bits) for part in torch.split(code, rows)])


def unpack_words(packed: Int32[Tensor, "N W"], bits: int, n_cols: int) -> UInt8[Tensor, "N K"]:
    """The codes uint8 [N, ``n_cols``] in ``packed`` int32 [N, W]."""
    rows = max(1, CHUNK_ENTRIES // n_cols)
    return torch.cat([_unpack(part, bits, n_cols) for part in torch.split(packed, rows)])


def _pack(code: Tensor, bits: int) -> Tensor:
    n_rows, n_cols = code.shape
    words = -(-n_cols * bits // WORD)
    each = torch.arange(bits, device=code.device, dtype=torch.uint8)
    stream = (code[:, :, None] >> each & 1).reshape(n_rows, -1)
    stream = torch.nn.functional.pad(stream, (0, words * WORD - n_cols * bits)).reshape(n_rows, words, 4, 8)
    weights = 1 << torch.arange(8, device=code.device, dtype=torch.int16)
    as_bytes = (stream * weights).sum(-1, dtype=torch.int16).to(torch.uint8)  # four bytes a word, the lowest first
    return as_bytes.reshape(n_rows, -1).view(torch.int32)


def _unpack(packed: Tensor, bits: int, n_cols: int) -> Tensor:
    as_bytes = packed.contiguous().view(torch.uint8)
    each = torch.arange(8, device=packed.device, dtype=torch.uint8)
    stream = (as_bytes[:, :, None] >> each & 1).reshape(len(packed), -1)[:, : n_cols * bits]
    weights = 1 << torch.arange(bits, device=packed.device, dtype=torch.int16)
    return (stream.reshape(len(packed), n_cols, bits) * weights).sum(-1, dtype=torch.int16).to(torch.uint8)
