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
from bitwright.rounding.kernels.blocks import BlockSearch, descend_blocks
from bitwright.rounding.kernels.error_feedback import Feedback, feed_back
from bitwright.rounding.kernels.grid import TableGrid, reciprocal
from bitwright.rounding.kernels.lattice import ScalarLattice
from bitwright.rounding.kernels.row_feedback import RowFeedback


class Bnb4Rounder(Rounder):
    """NF4 and FP4 in blocks of consecutive weights."""

    formats: ClassVar[Mapping[str, BlockFormat]] = BLOCK_FORMATS
    codes: ClassVar[type[Codes]] = BlockCodes

    def nearest(self, weight: Tensor, format: BlockFormat) -> BlockCodes:
        return nearest(weight, format)

    def together(self, weight: Tensor, feedback: Feedback, formats: Sequence[BlockFormat]) -> list[Codes]:
        """Error feedback, formats of one grid side by side, then a sweep of coordinate descent over scales and codes."""
        done: dict[str, Codes] = {}
        for same in side_by_side(weight, formats, lambda format: format.grid):
            for start in error_feedback(weight, feedback, same):
                done[start.format.name] = coordinate_descent(weight, start, feedback.moment, SWEEPS)
        return [done[format.name] for format in formats]

    def by_parts(self, weight: Tensor, feedback: Feedback, rows: RowFeedback, format: BlockFormat) -> Codes:
        """Rows share what their scales are multiples of, so one table of scales serves all parts."""
        target, table = weight.float()[rows.order], scale_table(weight, format)
        code = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
        levels = torch.tensor(format.levels, dtype=torch.float32, device=weight.device)
        grid = TableGrid.of(format.levels, weight.device)
        for part, own in rows.parts:
            search = BlockSearch(target[part], feedback.factor, grid, [scales := table.rows(own)])
            found = feed_back(search.w, feedback.factor, grid, search.step, search.enter)
            decoded = scales.decode(levels[found.int()].t())
            found = descend_blocks(target[part], found, decoded, grid, levels, scales, feedback.moment, SWEEPS)
            rows.absorb(target, part, scales.decode(levels[found.int()].t()))
            code[own] = found.t()
        return BlockCodes(format, (weight.shape[0], weight.shape[1]), code.reshape(-1), table.scales())

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


def error_feedback(weight: Tensor, feedback: Feedback, formats: Sequence[BlockFormat]) -> list[BlockCodes]:
    """Codes of ``weight`` [N, K] in each of ``formats`` (of one grid), lowering tr(dW S dW^T) column by column.

    For column j: q = snap(w_j); w_k -= (w_j - q) U_jk / U_jj for k > j. Raises ValueError for a format whose blocks would run
    across rows.
    """
    shape = (weight.shape[0], weight.shape[1])
    tables = [scale_table(weight, format) for format in formats]
    grid = TableGrid.of(formats[0].levels, weight.device)
    search = BlockSearch(weight, feedback.factor, grid, tables)
    codes = search.split(feed_back(search.w, feedback.factor, grid, search.step, search.enter))
    return [
        BlockCodes(format, shape, code.t().reshape(-1), table.scales())
        for format, code, table in zip(formats, codes, tables, strict=True)
    ]


def scale_table(weight: Tensor, format: BlockFormat) -> ScaleTable:
    """Scales of ``weight`` [N, K] to begin with. Raises ValueError for a format whose blocks would run across rows."""
    if reason := format.unavailable(weight.shape[1]):
        raise ValueError(f"{format.name}: {reason}")
    return ScaleTable(format, blocks_of(weight, format.block_size).abs().amax(1).reshape(weight.shape[0], -1))


def coordinate_descent(weight: Tensor, codes: BlockCodes, moment: Tensor, sweeps: int = 1) -> BlockCodes:
    """Codes and scales with no larger tr(dW S dW^T) than those of ``codes``; weight [N, K], damped S = ``moment`` [K, K]."""
    n_rows, n_cols = weight.shape
    format = codes.format
    table = ScaleTable.of(format, codes.scales, n_rows)
    code = codes.code.reshape(n_rows, n_cols).t().contiguous()
    levels = torch.tensor(format.levels, dtype=torch.float32, device=weight.device)
    grid = TableGrid.of(format.levels, weight.device)
    code = descend_blocks(weight, code, codes.decode(), grid, levels, table, moment, sweeps)
    return BlockCodes(format, (n_rows, n_cols), code.t().reshape(-1), table.scales())
