"""Coordinate descent on the codes: sweep the columns again, each code at its best given all others (QuantEase, 2309.01885)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from bitwright.formats.codes import Codes
from bitwright.rounding.grid import Grid, reciprocal

STEP = 32  # columns between products with the whole moment


def coordinate_descent(weight: Tensor, codes: Codes, moment: Tensor, sweeps: int = 1) -> Codes:
    """Codes with the scales of ``codes`` and no larger tr(dW S dW^T); weight [N, K], S = ``moment`` [K, K], damped.

    With the other columns fixed, the best value for column j is w_j + sum_{k != j} (w_k - q_k) S_kj / S_jj, snapped.
    """
    n_rows, n_cols = weight.shape
    grid = Grid.of(codes.format, weight.device)
    scale = codes.scale_of_each_weight().reshape(n_rows, n_cols).t().contiguous()
    inverse = reciprocal(scale)
    target = weight.float().t()
    error = (target - codes.decode().t()).contiguous()  # [K, N]
    code = codes.code.reshape(n_rows, n_cols).t().contiguous()
    pivot = moment.diagonal()
    for _ in range(sweeps):
        for start in range(0, n_cols, STEP):
            stop = min(start + STEP, n_cols)
            pull = moment[start:stop] @ error  # sum over all k of S_jk (w_k - q_k)
            for j in range(start, stop):
                others = (pull[j - start] - pivot[j] * error[j]) / pivot[j]
                cell = grid.cell((target[j] + others) * inverse[j])
                found = target[j] - grid.level(cell) * scale[j]
                delta = found - error[j]
                error[j] = found
                code[j] = grid.code_of_cell.index_select(0, cell)
                pull[j - start + 1 :].addr_(moment[j, j + 1 : stop], delta)
    return replace(codes, code=code.t().reshape(-1))
