"""Coordinate descent: sweep scales and codes again, each at its best given all others (QuantEase, arXiv 2309.01885)."""

from __future__ import annotations

import torch
from torch import Tensor

from bitwright.formats.codes import Codes
from bitwright.rounding.grid import Grid, ScaleTable, TableGrid, reciprocal


def coordinate_descent(weight: Tensor, codes: Codes, moment: Tensor, sweeps: int = 1) -> Codes:
    """Codes and scales with no larger tr(dW S dW^T) than those of ``codes``; weight [N, K], damped S = ``moment`` [K, K].

    Block by block. The scale first: with the codes c of a block fixed, the best change of its scale is
    c^T (S e) / c^T S c, where e = w - q is the error of the row; it is snapped to what storage holds and taken if it helps.
    Then each column j of the block: the best value is w_j + sum_{k != j} e_k S_kj / S_jj, snapped to the grid.
    """
    n_rows, n_cols = weight.shape
    size = codes.format.block_size
    grid = TableGrid.of(codes.format.levels, weight.device)
    table = ScaleTable.of(codes.format, codes.scales, n_rows)
    code = codes.code.reshape(n_rows, n_cols).t().contiguous()
    levels = torch.tensor(codes.format.levels, dtype=torch.float32, device=weight.device)
    decoded = codes.decode()
    error = torch.sub(weight.float(), decoded, out=decoded).t().contiguous()  # [K, N]
    del decoded
    for _ in range(sweeps):
        for start in range(0, n_cols, size):
            block = slice(start, start + size)
            inner = moment[block, block]
            target = weight[:, block].float().t().contiguous()
            pull = moment[block] @ error  # S e, the rows of this block
            level = levels[code[block].int()]
            scale = _refit(table, start // size, level, inner, pull, error[block])
            code[block] = sweep_columns(grid, target, error[block], pull, inner, scale)
    return Codes(codes.format, (n_rows, n_cols), code.t().reshape(-1), table.scales())


def sweep_columns(grid: Grid, target: Tensor, error: Tensor, pull: Tensor, inner: Tensor, scale: Tensor) -> Tensor:
    """Codes [B, N] of one block, each column at its best given all others; ``error`` and ``pull`` follow in place.

    ``target`` [B, N] is what scale * level has to meet, ``error`` what it misses so far, ``pull`` = S e at these columns, and
    ``inner`` [B, B] the block's own part of S.
    """
    inverse, pivot = reciprocal(scale), inner.diagonal()
    cells = torch.empty(target.shape, dtype=grid.cell_dtype, device=target.device)
    for j in range(len(target)):
        row = error[j]
        cell = grid.cell((target[j] - row + pull[j] / pivot[j]) * inverse)
        found = target[j] - grid.level(cell) * scale
        pull[j + 1 :].addr_(inner[j, j + 1 :], found - row)
        error[j] = found
        cells[j] = cell
    return grid.code(cells)


def _refit(table: ScaleTable, group: int, level: Tensor, inner: Tensor, pull: Tensor, error: Tensor) -> Tensor:
    """The best storable scale [N] of one block given its levels [B, N]; ``error`` and ``pull`` follow in place."""
    old = table.value[:, group]
    image = inner @ level  # S c
    slope, bend = (level * pull).sum(0), (level * image).sum(0)
    wanted = old + torch.where(bend > 0, slope / bend.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
    stored, value = table.snap(wanted, group)
    change = value - old
    better = change * (change * bend - 2 * slope) < 0
    change = torch.where(better, change, 0.0)
    table.put(group, torch.where(better, stored, table.stored[:, group]), torch.where(better, value, old))
    error -= level * change
    pull -= image * change
    return table.value[:, group]
