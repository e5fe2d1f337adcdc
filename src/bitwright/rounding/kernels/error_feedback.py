"""Error feedback: round column by column and let the columns that follow absorb each error (GPTQ, arXiv 2210.17323)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from bitwright.rounding.kernels.damping import Unseen, choose_damping
from bitwright.rounding.kernels.grid import Grid, reciprocal
from bitwright.rounding.kernels.inverse_factor import inverse_factor
from bitwright.rounding.kernels.replay import replay
from bitwright.rounding.kernels.row_feedback import RowFeedback
from bitwright.rounding.kernels.strips import feed_back_strip

DAMPING = 0.01  # share of the mean diagonal added to a second moment of which nothing more is known; GPTQ's default
_ESCALATION = 10.0
STEP = 32  # columns between updates of all that follow; divides every block size


@dataclass(frozen=True)
class Feedback:
    """How an error in one input column is absorbed by the later ones: inv(S) = U^T U with U upper triangular."""

    factor: Float32[Tensor, "K K"]  # U
    moment: Float32[Tensor, "K K"]  # S as factored: mean diagonal one, damped
    damping: float  # the share of the mean diagonal that was needed
    rows: RowFeedback | None = None  # how an error in one row is absorbed by later ones, where that is worth it

    @classmethod
    def of(cls, second_moment: Float32[Tensor, "K K"], unseen: Unseen | None = None, damping: float = DAMPING) -> Feedback:
        """Factor S = mean of x x^T, which is scaled and damped in its place: it is among the largest things in memory.

        ``unseen`` tells how much damping S needs; without it it gets ``damping``. Dead columns, singular S: damping grows until
        it factors. Raises ValueError for entries that are not finite; every finite S factors in the end.
        """
        damped = second_moment
        damped /= damped.diagonal().abs().mean().clamp(min=torch.finfo(torch.float32).tiny)
        if not bool(torch.isfinite(damped.sum())):
            raise ValueError("the second moment has NaN or infinite entries")
        if unseen is not None:
            damping, _ = choose_damping(damped, unseen)
        damped.diagonal().add_(damping)
        while (upper := inverse_factor(damped.clone())) is None:
            damped.diagonal().add_(damping * (_ESCALATION - 1))
            damping *= _ESCALATION
        return cls(upper, damped, damping)


def feed_back(
    w: Float32[Tensor, "K R"],
    factor: Float32[Tensor, "K K"],
    grid: Grid,
    step: int,
    enter: Callable[[int], tuple[Tensor, Tensor | None]],
) -> UInt8[Tensor, "K R"]:
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
        block = w[start:stop]
        follow = factor[start:stop, start:stop] * inverse_pivot[start:stop, None]  # U_jk / U_jj
        codes[start:stop] = _strip(grid, block, follow, scale, minimum)
        block.mul_(inverse_pivot[start:stop, None])
        w[stop:].addmm_(factor[start:stop, stop:].t(), block, alpha=-1)
    return codes


def _strip(grid: Grid, block: Tensor, follow: Tensor, scale: Tensor, minimum: Tensor | None) -> Tensor:
    """Codes of one block of columns, which turn into their errors, by what its device is quick at."""
    if block.device.type == "cpu":
        return feed_back_strip(grid, block, follow, scale, minimum)
    minima = () if minimum is None else (minimum,)
    return replay(feed_back_within, grid, 1, block, follow, scale, *minima)


def feed_back_within(
    grid: Grid,
    block: Float32[Tensor, "B R"],
    follow: Float32[Tensor, "B B"],
    scale: Float32[Tensor, " R"],
    minimum: Float32[Tensor, " R"] | None = None,
) -> UInt8[Tensor, "B R"]:
    """Codes of one block of columns, which turn into their errors; ``follow`` [j, k] is what column k takes of that of j."""
    inverse = reciprocal(scale)
    cells = torch.empty(block.shape, dtype=grid.cell_dtype, device=block.device)
    for j in range(len(block)):
        row = block[j]
        if minimum is not None:
            row -= minimum
        cell = grid.cell(row * inverse)
        cells[j] = cell
        row.addcmul_(grid.level(cell), scale, value=-1)  # the row now holds its error
        block[j + 1 :].addr_(follow[j, j + 1 :], row, alpha=-1)
    return grid.code(cells)
