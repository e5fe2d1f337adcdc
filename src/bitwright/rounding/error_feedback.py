"""Error feedback: round column by column and let the columns that follow absorb each error (GPTQ, arXiv 2210.17323)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.formats.codes import Codes
from bitwright.formats.format import BlockFormat
from bitwright.rounding.grid import Grid, ScaleTable, TableGrid, reciprocal
from bitwright.rounding.inverse_factor import inverse_factor
from bitwright.rounding.nearest import blocks_of
from bitwright.rounding.scale_search import search_scale

DAMPING = 0.01  # share of the mean diagonal added to the second moment; GPTQ's default, see docs/LOG.md
_ESCALATION = 10.0
STEP = 32  # columns between updates of all that follow; divides every block size


@dataclass(frozen=True)
class Feedback:
    """How an error in one input column is absorbed by the later ones: inv(S) = U^T U with U upper triangular."""

    factor: Tensor  # U float32 [K, K]
    moment: Tensor  # S as factored: float32 [K, K], mean diagonal one, damped
    damping: float  # the share of the mean diagonal that was needed

    @classmethod
    def of(cls, second_moment: Tensor, damping: float = DAMPING, reuse: bool = False) -> Feedback:
        """Factor ``second_moment`` S float32 [K, K] = mean of x x^T. Dead columns, singular S: damping grows until it factors.

        ``reuse``: scale and damp S in its place, which saves a copy of it. Raises ValueError for entries that are not
        finite; every finite S factors in the end.
        """
        damped = second_moment if reuse else second_moment.clone()
        damped /= damped.diagonal().abs().mean().clamp(min=torch.finfo(torch.float32).tiny)
        if not bool(torch.isfinite(damped.sum())):
            raise ValueError("the second moment has NaN or infinite entries")
        damped.diagonal().add_(damping)
        while (upper := inverse_factor(damped.clone())) is None:
            damped.diagonal().add_(damping * (_ESCALATION - 1))
            damping *= _ESCALATION
        return cls(upper, damped, damping)


def error_feedback(weight: Tensor, feedback: Feedback, formats: list[BlockFormat]) -> list[Codes]:
    """Codes of ``weight`` [N, K] in each of ``formats`` (of one grid), lowering tr(dW S dW^T) column by column.

    For column j: q = snap(w_j); w_k -= (w_j - q) U_jk / U_jj for k > j. The scale of a block is searched when its first
    column is reached, on the weights as corrected so far, weighting column j with 1 / U_jj^2 (its share of the
    objective). Raises ValueError for a format whose blocks would run across rows.
    """
    n_rows, n_cols = weight.shape
    factor = feedback.factor
    importance = factor.diagonal().pow(-2)[:, None]  # [K, 1]
    grid = TableGrid.of(formats[0].levels, weight.device)
    states = [_Scales(weight, format, grid, importance) for format in formats]
    w = weight.float().t().repeat(1, len(formats)).contiguous()  # [K, formats * N]

    def enter(start: int) -> tuple[Tensor, None]:
        parts = [w[:, i * n_rows : (i + 1) * n_rows] for i in range(len(formats))]
        return torch.cat([s.enter(start, part) for s, part in zip(states, parts, strict=True)]), None

    codes = feed_back(w, factor, grid, STEP, enter)
    return [
        Codes(format, (n_rows, n_cols), codes[:, i * n_rows : (i + 1) * n_rows].t().reshape(-1), state.table.scales())
        for i, (format, state) in enumerate(zip(formats, states, strict=True))
    ]


def feed_back(w: Tensor, factor: Tensor, grid: Grid, step: int, enter: Callable[[int], tuple[Tensor, Tensor | None]]) -> Tensor:
    """Codes uint8 [K, R] of the columns of ``w`` [K, R], which is overwritten.

    ``enter(j)`` gives scale and minimum [R] of the ``step`` columns from j on, while ``w`` holds the weights as corrected
    so far: value = scale * level + minimum.
    """
    n_cols = len(w)
    codes = torch.empty(w.shape, dtype=torch.uint8, device=w.device)
    inverse_pivot = factor.diagonal().reciprocal()
    for start in range(0, n_cols, step):
        stop = min(start + step, n_cols)
        scale, minimum = enter(start)
        inverse = reciprocal(scale)
        block = w[start:stop]
        cells = torch.empty(block.shape, dtype=grid.cell_dtype, device=w.device)
        follow = factor[start:stop, start:stop] * inverse_pivot[start:stop, None]  # U_jk / U_jj
        for j in range(stop - start):
            row = block[j]
            if minimum is not None:
                row -= minimum
            cell = grid.cell(row * inverse)
            cells[j] = cell
            row.addcmul_(grid.level(cell), scale, value=-1)  # the row now holds its error
            block[j + 1 :].addr_(follow[j, j + 1 :], row, alpha=-1)
        codes[start:stop] = grid.code(cells)
        block.mul_(inverse_pivot[start:stop, None])
        w[stop:].addmm_(factor[start:stop, stop:].t(), block, alpha=-1)
    return codes


class _Scales:
    """The scales of one format while the columns pass."""

    def __init__(self, weight: Tensor, format: BlockFormat, grid: TableGrid, importance: Tensor) -> None:
        self.size, self.grid, self.importance = format.block_size, grid, importance
        n_rows, n_cols = weight.shape
        if n_cols % self.size:
            raise ValueError(f"rows of {n_cols} columns are not a multiple of {self.size}, the block size of {format.name}")
        self.table = ScaleTable(format, blocks_of(weight, self.size).abs().amax(1).reshape(n_rows, -1))

    def enter(self, start: int, w: Tensor) -> Tensor:
        """Scales [N] of the columns from ``start`` on; ``w`` [K, N] are the weights as corrected so far."""
        group, offset = divmod(start, self.size)
        if offset == 0:
            block = slice(start, start + self.size)
            found = search_scale(w[block], self.importance[block], self.grid, lambda wanted: self.table.snap(wanted, group))
            self.table.put(group, *found)
        return self.table.value[:, group]
