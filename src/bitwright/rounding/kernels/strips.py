"""A strip of columns, one after the other, compiled for processors (numba).

A column waits for the one before it, so only rows are left to be done side by side, and a dozen tensor operations on the few
hundred numbers of a column cost fifty times as much to start as to do. Here some rows pass through all columns of a strip while
they lie in the innermost cache. The arithmetic is that of the tensor operations which a GPU does instead
(``error_feedback.feed_back_within``, ``coordinate_descent.sweep_within``); a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import no_type_check

import numpy as np
import torch
from torch import Tensor

from bitwright.rounding.kernels.compiled import compiled, prepare
from bitwright.rounding.kernels.grid import Grid, UniformGrid, reciprocal

_ROWS = 128  # at a time: what 64 columns of them need lies in 32 to 96 KiB


def feed_back_strip(grid: Grid, block: Tensor, follow: Tensor, scale: Tensor, minimum: Tensor | None = None) -> Tensor:
    """``error_feedback.feed_back_within``, compiled."""
    lowest = torch.empty(0) if minimum is None else minimum
    return _run(_feed_back, grid, (block,), (follow, reciprocal(scale), scale, lowest))


def sweep_strip(grid: Grid, error: Tensor, target: Tensor, pull: Tensor, inner: Tensor, scale: Tensor) -> Tensor:
    """``coordinate_descent.sweep_within``, compiled."""
    return _run(_sweep, grid, (error, pull), (target, inner, reciprocal(scale), scale))


def _run(kernel: Callable[..., None], grid: Grid, changed: Sequence[Tensor], given: Sequence[Tensor]) -> Tensor:
    """Codes of the shape of what is ``changed`` [B, R], which is contiguous. What is ``given`` is made so: each layout would be
    compiled by itself."""
    _prepare()
    codes = torch.empty(changed[0].shape, dtype=torch.uint8)
    arrays = (tensor.numpy() for tensor in (*changed, *(tensor.contiguous() for tensor in given)))
    kernel(*arrays, grid.numbers(), codes.numpy())
    return codes


@cache
def _prepare() -> None:
    one, code = np.ones((1, 1), np.float32), np.empty((1, 1), np.uint8)
    grid = UniformGrid(0, 2, 1.0).numbers()
    prepare(
        lambda: _feed_back(one.copy(), one, one[0], one[0], one[0], grid, code),
        lambda: _sweep(one.copy(), one.copy(), one, one, one[0], one[0], grid, code),
    )


@no_type_check
@compiled
def _snap(x, grid, level, code):
    """The levels and codes of the grid (``grid.Numbers``) nearest to ``x`` [R], which is overwritten; for NaN the least."""
    if grid.uniform:
        back = np.float32(1) / grid.unit
        for r in range(len(x)):
            cell = min(max(np.float32(0), np.rint(x[r] * grid.unit - grid.first)), grid.last)
            level[r] = (cell + grid.first) * back
            code[r] = np.uint8(cell)
    else:
        half = np.float32(len(grid.level_of_cell) // 2)
        for r in range(len(x)):
            x[r] = min(max(np.float32(0), x[r] * half + half), half + half)
        for r in range(len(x)):  # by itself: what comes before is done several at a time
            cell = np.int32(x[r])
            level[r] = grid.level_of_cell[cell]
            code[r] = grid.code_of_cell[cell]


@no_type_check
@compiled
def _feed_back(w, follow, inverse, scale, minimum, grid, codes):
    n_cols, n_rows = w.shape
    x, level = np.empty(_ROWS, np.float32), np.empty(_ROWS, np.float32)
    for start in range(0, n_rows, _ROWS):
        n = min(_ROWS, n_rows - start)
        stop = start + n
        s, i = scale[start:stop], inverse[start:stop]
        for j in range(n_cols):
            row = w[j, start:stop]
            if len(minimum):
                row -= minimum[start:stop]
            for r in range(n):
                x[r] = row[r] * i[r]
            _snap(x[:n], grid, level[:n], codes[j, start:stop])
            for r in range(n):
                row[r] -= level[r] * s[r]
            for k in range(j + 1, n_cols):
                share, later = follow[j, k], w[k, start:stop]
                for r in range(n):
                    later[r] -= share * row[r]


@no_type_check
@compiled
def _sweep(error, pull, target, inner, inverse, scale, grid, codes):
    n_cols, n_rows = error.shape
    x, level = np.empty(_ROWS, np.float32), np.empty(_ROWS, np.float32)
    for start in range(0, n_rows, _ROWS):
        n = min(_ROWS, n_rows - start)
        stop = start + n
        s, i = scale[start:stop], inverse[start:stop]
        for j in range(n_cols):
            row, wanted, toward, pivot = error[j, start:stop], target[j, start:stop], pull[j, start:stop], inner[j, j]
            for r in range(n):
                x[r] = (wanted[r] - row[r] + toward[r] / pivot) * i[r]
            _snap(x[:n], grid, level[:n], codes[j, start:stop])
            for r in range(n):
                found = wanted[r] - level[r] * s[r]
                level[r] = found - row[r]  # the change, which the columns that follow take into account
                row[r] = found
            for k in range(j + 1, n_cols):
                share, later = inner[j, k], pull[k, start:stop]
                for r in range(n):
                    later[r] += share * level[r]
