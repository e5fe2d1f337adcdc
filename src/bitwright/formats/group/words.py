"""Codes of any width as a little-endian stream of bits in 32-bit words: the packing of compressed-tensors and MLX."""

from __future__ import annotations

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor

WORD = 32  # bits
CHUNK_ENTRIES = 1 << 20  # codes that are packed or unpacked at once


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
