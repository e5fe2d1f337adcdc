"""Functions over arrays compiled for processors (numba): where they are kept, and what must not be lost while LLVM works."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numba

from bitwright.host.interrupts import held_back

_FUNCTIONS = 8  # more than a kernel and what it calls


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """``function`` as machine code, which is kept between processes where there is a place for it.

    What is kept is made anew when the file of ``function`` changes, and only then: what it calls has to stand in that file.
    """
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
