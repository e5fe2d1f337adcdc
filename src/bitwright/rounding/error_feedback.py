"""Error feedback: round column by column and let the columns that follow absorb each error (GPTQ, arXiv 2210.17323)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.formats.codes import Codes
from bitwright.formats.format import BlockFormat
from bitwright.rounding.grid import Grid, ScaleTable, reciprocal
from bitwright.rounding.nearest import blocks_of
from bitwright.rounding.scale_search import search_scale

DAMPING = 0.01  # share of the mean diagonal added to the second moment; GPTQ's default, see docs/LOG.md
_ESCALATION = 10.0


@dataclass(frozen=True)
class Feedback:
    """How an error in one input column is absorbed by the later ones: inv(S) = U^T U with U upper triangular."""

    factor: Tensor  # U float32 [K, K]
    damping: float  # the share of the mean diagonal that was needed

    @classmethod
    def of(cls, second_moment: Tensor, damping: float = DAMPING) -> Feedback:
        """Factor ``second_moment`` S [K, K] = mean of x x^T. Dead columns and singular S: damping grows until it factors."""
        moment = second_moment.float()
        diagonal = moment.diagonal()
        mean = diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny)
        identity = torch.eye(moment.shape[0], device=moment.device)
        while True:
            # S = R R^T with R upper is the Cholesky factor of S read from the far corner; then U = inv(R).
            flipped = (moment / mean + damping * identity).flip(0, 1)
            lower, failed = torch.linalg.cholesky_ex(flipped)
            if not int(failed):
                upper = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
                if bool(torch.isfinite(upper).all()):
                    return cls(upper, damping)
            damping *= _ESCALATION


def error_feedback(weight: Tensor, feedback: Feedback, formats: list[BlockFormat]) -> list[Codes]:
    """Codes of ``weight`` [N, K] in each of ``formats`` (of one grid), lowering tr(dW S dW^T) column by column.

    For column j: q = snap(w_j); w_k -= (w_j - q) U_jk / U_jj for k > j. The scale of a block is searched when its first
    column is reached, on the weights as corrected so far, weighting column j with 1 / U_jj^2 (its share of the
    objective). A format whose blocks run across rows (K not a multiple of the block size) takes its scales from
    the uncorrected weights instead.
    """
    n_rows, n_cols = weight.shape
    factor = feedback.factor
    importance = factor.diagonal().pow(-2)[:, None]  # [K, 1]
    grid = Grid.of(formats[0], weight.device)
    states = [_Scales(weight, format, grid, importance) for format in formats]
    step = min(32, *(format.block_size for format in formats))
    w = weight.float().t().repeat(1, len(formats)).contiguous()  # [K, formats * N]
    cells = torch.empty(w.shape, dtype=torch.int32, device=w.device)
    inverse_pivot = factor.diagonal().reciprocal()
    for start in range(0, n_cols, step):
        stop = min(start + step, n_cols)
        parts = [w[:, i * n_rows : (i + 1) * n_rows] for i in range(len(formats))]
        scale = torch.cat([s.enter(start, stop, part) for s, part in zip(states, parts, strict=True)], 1)
        inverse = reciprocal(scale)
        block = w[start:stop]
        follow = factor[start:stop, start:stop] * inverse_pivot[start:stop, None]  # U_jk / U_jj
        for j in range(stop - start):
            row, s = block[j], min(j, scale.shape[0] - 1)
            cell = grid.cell(row * inverse[s])
            cells[start + j] = cell
            row.addcmul_(grid.level(cell), scale[s], value=-1)  # the row now holds its error
            block[j + 1 :].addr_(follow[j, j + 1 :], row, alpha=-1)
        block.mul_(inverse_pivot[start:stop, None])
        w[stop:].addmm_(factor[start:stop, stop:].t(), block, alpha=-1)
    codes = grid.code_of_cell.index_select(0, cells.reshape(-1)).reshape(cells.shape).t()  # [formats * N, K]
    return [
        Codes(state.format, (n_rows, n_cols), codes[i * n_rows : (i + 1) * n_rows].reshape(-1), state.table.scales())
        for i, state in enumerate(states)
    ]


class _Scales:
    """The scales of one format while the columns pass."""

    def __init__(self, weight: Tensor, format: BlockFormat, grid: Grid, importance: Tensor) -> None:
        self.format, self.grid, self.importance = format, grid, importance
        n_rows, n_cols = weight.shape
        blocks = blocks_of(weight, format.block_size)
        self.straddles = n_cols % format.block_size != 0
        if self.straddles:
            each = blocks_of(importance.t().expand(n_rows, n_cols), format.block_size)
            _, wanted = search_scale(blocks.t().contiguous(), each.t(), grid, lambda s: (s, s))
            self.table = ScaleTable(format, wanted[:, None])
            scales = self.table.value.reshape(-1).repeat_interleave(format.block_size)[: n_rows * n_cols]
            self.each_scale = scales.reshape(n_rows, n_cols).t().contiguous()
        else:
            self.table = ScaleTable(format, blocks.abs().amax(1).reshape(n_rows, -1))

    def enter(self, start: int, stop: int, w: Tensor) -> Tensor:
        """Scales [1, N] (or [stop - start, N] where blocks run across rows) of the columns from ``start`` on.

        ``w`` [K, N] are the weights as corrected so far.
        """
        if self.straddles:
            return self.each_scale[start:stop]
        group, offset = divmod(start, self.format.block_size)
        if offset == 0:
            block = slice(start, start + self.format.block_size)
            snap = lambda wanted: self.table.snap(wanted, group)  # noqa: E731
            self.table.put(group, *search_scale(w[block], self.importance[block], self.grid, snap))
        return self.table.value[None, :, group]
