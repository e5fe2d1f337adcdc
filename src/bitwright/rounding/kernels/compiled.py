"""Functions over arrays compiled for processors (numba): where they are kept, and what must not be lost while LLVM works."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import no_type_check

import numba
import numpy as np

from bitwright.host.interrupts import held_back

_FUNCTIONS = 8  # more than a kernel and what it calls


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """``function`` as machine code, which is kept between processes where there is a place for it."""
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no folder can be written
        return numba.njit(nogil=True, error_model="numpy")(function)


def prepare(*calls: Callable[[], object]) -> None:
    """Compile what is called, or load what was compiled. LLVM calls Python back meanwhile, where an interrupt would be lost."""
    with held_back():
        for call in calls:
            _kept_or_not(call)


def _kept_or_not(call: Callable[[], object]) -> object:
    """``call``, also where a full disk keeps nothing: each function is in memory once its place on disk was refused."""
    for _ in range(_FUNCTIONS):
        with suppress(OSError):
            return call()
    return call()


@no_type_check
@compiled
def snap(x, grid, level, code):
    """The levels and codes of the grid (``grid.Numbers``) that are nearest to ``x`` [R], which is overwritten."""
    if grid.uniform:
        back = np.float32(1) / grid.unit
        for r in range(len(x)):
            cell = min(max(np.rint(x[r] * grid.unit - grid.first), np.float32(0)), grid.last)
            level[r] = (cell + grid.first) * back
            code[r] = np.uint8(cell)
    else:
        half = np.float32(len(grid.level_of_cell) // 2)
        for r in range(len(x)):
            x[r] = min(max(x[r] * half + half, np.float32(0)), half + half)
        for r in range(len(x)):  # by itself: what comes before is done several at a time
            cell = np.int32(x[r])
            level[r] = grid.level_of_cell[cell]
            code[r] = grid.code_of_cell[cell]
