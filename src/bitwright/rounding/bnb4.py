"""Rounding into the 4-bit formats of bitsandbytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from bitwright.formats.base import Codes
from bitwright.formats.bnb4.codes import CHUNK_ENTRIES, BlockCodes
from bitwright.formats.bnb4.format import BLOCK_FORMATS, BlockFormat
from bitwright.rounding.base import SWEEPS, Rounder, side_by_side
from bitwright.rounding.kernels.block_scales import ScaleTable
from bitwright.rounding.kernels.blocks import descend_blocks, round_blocks
from bitwright.rounding.kernels.error_feedback import Feedback
from bitwright.rounding.kernels.grid import TableGrid, reciprocal
from bitwright.rounding.kernels.lattice import ScalarLattice


class Bnb4Rounder(Rounder):
    """NF4 and FP4 in blocks of consecutive weights."""

    formats: ClassVar[Mapping[str, BlockFormat]] = BLOCK_FORMATS
    codes: ClassVar[type[Codes]] = BlockCodes

    def nearest(self, weight: Tensor, format: BlockFormat) -> BlockCodes:
        return nearest(weight, format)

    def calibrated(self, weight: Tensor, feedback: Feedback, formats: Sequence[BlockFormat]) -> list[Codes]:
        return list(rounded(weight, feedback, formats))

    def descended(self, weight: Tensor, codes: BlockCodes, moment: Tensor) -> BlockCodes:
        table = ScaleTable.of(codes.format, codes.scales, len(weight))
        code = codes.code.reshape(codes.shape).t().clone(memory_format=torch.contiguous_format)
        grid = TableGrid.of(codes.format.levels, weight.device)
        levels = torch.tensor(codes.format.levels, dtype=torch.float32, device=weight.device)
        return table.codes(descend_blocks(weight, code, codes.decode(), grid, levels, table, moment, SWEEPS))

    def lattice(self, codes: BlockCodes) -> ScalarLattice:
        grid = TableGrid.of(codes.format.levels, codes.code.device)
        return ScalarLattice(codes.format.block_size, codes.scales.decode().reshape(codes.shape[0], -1), None, grid)

    def rescaled(self, codes: BlockCodes, scale: Tensor, minimum: Tensor | None) -> BlockCodes:
        table = ScaleTable.of(codes.format, codes.scales, codes.shape[0])
        table.put(slice(None), *table.snap(scale, slice(None)))
        return replace(codes, scales=table.scales())


BNB4 = Bnb4Rounder()


def blocks_of(weight: Tensor, block_size: int) -> Tensor:
    """The weight as rows of blocks [blocks, block_size], row-major, the last block padded with zeros."""
    flat = weight.float().reshape(-1)
    return torch.nn.functional.pad(flat, (0, -flat.numel() % block_size)).reshape(-1, block_size)


def nearest(weight: Tensor, format: BlockFormat) -> BlockCodes:
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
    return BlockCodes(format, tuple(weight.shape), flat, ScaleTable(format, absmax[:, None], offset, as_library=True).scales())


def rounded(weight: Tensor, feedback: Feedback, formats: Sequence[BlockFormat], sweeps: int = SWEEPS) -> list[BlockCodes]:
    """Calibrated codes of ``weight`` [N, K] in each of ``formats``, those of one grid side by side.

    Raises ValueError for a format whose blocks would run across rows.
    """
    done: dict[str, BlockCodes] = {}
    for same in side_by_side(weight, formats, lambda format: format.grid):
        tables = [scale_table(weight, format) for format in same]
        grid = TableGrid.of(same[0].levels, weight.device)
        levels = torch.tensor(same[0].levels, dtype=torch.float32, device=weight.device)
        found = round_blocks(weight, feedback, grid, levels, tables, sweeps=sweeps)
        for table, code in zip(tables, found, strict=True):
            done[table.format.name] = table.codes(code)
    return [done[format.name] for format in formats]


def scale_table(weight: Tensor, format: BlockFormat) -> ScaleTable:
    """Scales of ``weight`` [N, K] to begin with. Raises ValueError for a format whose blocks would run across rows."""
    if reason := format.unavailable(weight.shape[1]):
        raise ValueError(f"{format.name}: {reason}")
    return ScaleTable(format, blocks_of(weight, format.block_size).abs().amax(1).reshape(weight.shape[0], -1))
