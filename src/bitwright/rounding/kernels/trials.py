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
def _judge(weight, importance, scale, grid, cost, top, norm):
    """Cost, sum of importance w level and of importance level^2 [R] of ``scale`` [R]."""
    back = np.float32(1) / grid.unit
    half = np.float32(len(grid.level_of_cell) // 2)
    inverse = np.empty_like(scale)
    for r in range(len(scale)):
        inverse[r] = np.float32(1) / scale[r] if scale[r] else np.float32(0)
        cost[r] = top[r] = norm[r] = np.float32(0)
    for b in range(len(weight)):
        w, share = weight[b], importance[b]
        if grid.uniform:
            for r in range(len(scale)):
                cell = min(max(np.rint(w[r] * inverse[r] * grid.unit - grid.first), np.float32(0)), grid.last)
                level = (cell + grid.first) * back
                error, pulled = level * scale[r] - w[r], share[r] * level
                cost[r] += share[r] * error * error
                top[r] += pulled * w[r]
                norm[r] += pulled * level
        else:
            for r in range(len(scale)):
                cell = np.int32(min(max(w[r] * inverse[r] * half + half, np.float32(0)), half + half))
                level = grid.level_of_cell[cell]
                error, pulled = level * scale[r] - w[r], share[r] * level
                cost[r] += share[r] * error * error
                top[r] += pulled * w[r]
                norm[r] += pulled * level


@no_type_check
@compiled
def _best(weight, importance, value, grid, at, cost, fitted):
    n_rows = weight.shape[1]
    sums = np.empty((3, _ROWS), np.float32)
    for start in range(0, n_rows, _ROWS):
        stop = min(start + _ROWS, n_rows)
        found, top, norm = sums[0, : stop - start], sums[1, : stop - start], sums[2, : stop - start]
        for t in range(len(value)):
            scale = value[t, start:stop]
            _judge(weight[:, start:stop], importance[:, start:stop], scale, grid, found, top, norm)
            for r in range(stop - start):
                if t == 0 or found[r] < cost[start + r]:
                    at[start + r], cost[start + r] = t, found[r]
                    fitted[start + r] = top[r] / norm[r] if norm[r] > 0 else scale[r]
