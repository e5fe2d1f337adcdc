"""Round to nearest with absmax scales: what bitsandbytes does, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.formats.codes import Codes
from bitwright.formats.format import BlockFormat
from bitwright.rounding.grid import Grid, ScaleTable, reciprocal


def blocks_of(weight: Tensor, block_size: int) -> Tensor:
    """The weight as rows of blocks [blocks, block_size], row-major, the last block padded with zeros."""
    flat = weight.float().reshape(-1)
    return torch.nn.functional.pad(flat, (0, -flat.numel() % block_size)).reshape(-1, block_size)


def nearest(weight: Tensor, format: BlockFormat) -> Codes:
    """Codes of ``weight`` (any shape): scale = max |w| of each block, code = nearest level of w / scale.

    The code is chosen with the exact scale and decoded with the stored one, as bitsandbytes' ``quantize_4bit`` does.
    """
    grid = Grid.of(format, weight.device)
    blocks = blocks_of(weight, format.block_size)
    absmax = blocks.abs().amax(1)
    offset = float(absmax.mean()) if format.double_quant else 0.0
    scaled = (blocks * reciprocal(absmax)[:, None]).clamp(-1, 1)
    code = grid.code[grid.nearest(scaled)].reshape(-1)[: weight.numel()]
    return Codes(format, tuple(weight.shape), code, ScaleTable(format, absmax[:, None], offset, as_library=True).scales())
