"""Round to nearest with absmax scales: what bitsandbytes does, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.formats.codes import CHUNK_ENTRIES, Codes
from bitwright.formats.format import BlockFormat
from bitwright.rounding.grid import ScaleTable, TableGrid, reciprocal


def blocks_of(weight: Tensor, block_size: int) -> Tensor:
    """The weight as rows of blocks [blocks, block_size], row-major, the last block padded with zeros."""
    flat = weight.float().reshape(-1)
    return torch.nn.functional.pad(flat, (0, -flat.numel() % block_size)).reshape(-1, block_size)


def nearest(weight: Tensor, format: BlockFormat) -> Codes:
    """Codes of ``weight`` (any shape): scale = max |w| of each block, code = nearest level of w / scale.

    The code is chosen with the exact scale and decoded with the stored one, as bitsandbytes' ``quantize_4bit`` does.
    """
    grid = TableGrid.of(format.levels, weight.device)
    blocks = blocks_of(weight, format.block_size)
    absmax = blocks.abs().amax(1)
    offset = float(absmax.mean()) if format.double_quant else 0.0
    code = torch.empty(blocks.shape, dtype=torch.uint8, device=weight.device)
    rows = max(1, CHUNK_ENTRIES // format.block_size)
    for part, values, scale in zip(code.split(rows), blocks.split(rows), absmax.split(rows), strict=True):
        cell = grid.nearest((values * reciprocal(scale)[:, None]).clamp_(-1, 1))
        part.copy_(grid.code_of_level.index_select(0, cell.reshape(-1)).reshape(cell.shape))
    flat = code.reshape(-1)[: weight.numel()]
    return Codes(format, tuple(weight.shape), flat, ScaleTable(format, absmax[:, None], offset, as_library=True).scales())
