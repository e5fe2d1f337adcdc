"""The best of some trial scales of each block, all tried in one pass; compiled for processors (numba).

As tensor operations each trial writes half a dozen arrays of the block's size, which take longer to write and read than to
compute, and a few rows take longer to start than to do. Here nothing but sums is written.
"""

from __future__ import annotations

from functools import cache
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from bitwright.rounding.kernels.compiled import compiled, prepare
from bitwright.rounding.kernels.grid import Grid, UniformGrid, reciprocal

CHUNK_ENTRIES = 1 << 24  # weights times trials that exist at once on a GPU
_ROWS = 128  # at a time: what their sums take lies in the innermost cache
_LEAST_SCALE = np.finfo(np.float32).tiny  # grid.LEAST_SCALE; of this file, as all that is compiled with it

Found = tuple[Int64[Tensor, " R"], Float32[Tensor, " R"], Float32[Tensor, " R"]]


def best_trial(
    weight: Float32[Tensor, "B R"], importance: Float32[Tensor, "B R"], grid: Grid, value: Float32[Tensor, "T R"]
) -> Found:
    """Which of the scales ``value`` of each row's block is best, what it costs, and the scale that would suit its levels best.

    The cost is sum_b importance_b (w_b - s level(w_b / s))^2; with the levels kept, least squares give the scale
    sum_b importance_b w_b level_b / sum_b importance_b level_b^2.
    """
    if weight.device.type != "cpu":
        return best_within(weight, importance, grid, value)
    _prepare()
    n_rows = weight.shape[1]
    at, cost, fitted = torch.empty(n_rows, dtype=torch.int64), torch.empty(n_rows), torch.empty(n_rows)
    given = (tensor.contiguous().numpy() for tensor in (weight, importance, value))
    _best(*given, grid.numbers(), at.numpy(), cost.numpy(), fitted.numpy())
    return at, cost, fitted


def best_within(weight: Tensor, importance: Tensor, grid: Grid, value: Tensor) -> Found:
    """The same in tensor operations."""
    at_once = max(1, CHUNK_ENTRIES // weight.numel())
    costs = torch.cat([_costs(weight, importance, grid, part) for part in value.split(at_once)])
    cost, at = costs.min(0)
    best = value.gather(0, at[None])[0]
    level = grid.level(grid.cell(weight * reciprocal(best)))
    norm = (importance * level.square()).sum(0)
    fitted = (importance * weight * level).sum(0) / norm.clamp(min=torch.finfo(torch.float32).tiny)
    return at, cost, torch.where(norm > 0, fitted, best)


def _costs(weight: Tensor, importance: Tensor, grid: Grid, value: Tensor) -> Tensor:
    decoded = grid.level(grid.cell(weight * reciprocal(value)[:, None])).mul_(value[:, None])
    return decoded.sub_(weight).square_().mul_(importance).sum(1)


@cache
def _prepare() -> None:
    one, number = np.ones((1, 1), np.float32), np.empty(1, np.int64)
    prepare(lambda: _best(one, one, one, UniformGrid(0, 2, 1.0).numbers(), number, one[0].copy(), one[0].copy()))


@no_type_check
@compiled
def _level(w, inverse, grid, x, level):
    """The levels of the grid that are nearest to ``w`` / scale [R]; ``x`` is for what lies between."""
    if grid.uniform:
        back = np.float32(1) / grid.unit
        for r in range(len(w)):
            x[r] = min(max(np.float32(0), np.rint(w[r] * inverse[r] * grid.unit - grid.first)), grid.last)
            level[r] = (x[r] + grid.first) * back
    else:
        half = np.float32(len(grid.level_of_cell) // 2)
        for r in range(len(w)):
            x[r] = min(max(np.float32(0), w[r] * inverse[r] * half + half), half + half)
        for r in range(len(w)):  # by itself: what comes before is done several at a time
            level[r] = grid.level_of_cell[np.int32(x[r])]


@no_type_check
@compiled
def _inverse(scale, inverse):
    for r in range(len(scale)):
        inverse[r] = np.float32(1) / scale[r] if abs(scale[r]) >= _LEAST_SCALE else np.float32(0)


@no_type_check
@compiled
def _error(weight, importance, start, scale, grid, inverse, x, level, error):
    """What each of the scales [R] of the rows from ``start`` on costs."""
    stop = start + len(scale)
    _inverse(scale, inverse)
    error[:] = 0
    for b in range(len(weight)):
        w, share = weight[b, start:stop], importance[b, start:stop]
        _level(w, inverse, grid, x, level)
        for r in range(len(w)):
            missed = level[r] * scale[r] - w[r]
            error[r] += share[r] * missed * missed


@no_type_check
@compiled
def _fit(weight, importance, start, scale, grid, inverse, x, level, fitted, norm):
    """The scales that suit the levels of ``scale`` [R] best."""
    stop = start + len(scale)
    _inverse(scale, inverse)
    fitted[:] = 0
    norm[:] = 0
    for b in range(len(weight)):
        w, share = weight[b, start:stop], importance[b, start:stop]
        _level(w, inverse, grid, x, level)
        for r in range(len(w)):
            pulled = share[r] * level[r]
            fitted[r] += pulled * w[r]
            norm[r] += pulled * level[r]
    for r in range(len(scale)):
        fitted[r] = fitted[r] / norm[r] if norm[r] > 0 else scale[r]


@no_type_check
@compiled
def _best(weight, importance, value, grid, at, cost, fitted):
    """Rows group by group. What is cut from an array is cut from one row of it, or its numbers would not lie side by side."""
    n_rows = weight.shape[1]
    room = np.empty((5, _ROWS), np.float32)
    for start in range(0, n_rows, _ROWS):
        n = min(_ROWS, n_rows - start)
        inverse, x, level, error, best = room[0, :n], room[1, :n], room[2, :n], room[3, :n], room[4, :n]
        for t in range(len(value)):
            scale = value[t, start : start + n]
            _error(weight, importance, start, scale, grid, inverse, x, level, error)
            for r in range(n):
                if t == 0 or error[r] < cost[start + r]:
                    at[start + r], cost[start + r], best[r] = t, error[r], scale[r]
        _fit(weight, importance, start, best, grid, inverse, x, level, fitted[start : start + n], error)
