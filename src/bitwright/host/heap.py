"""Freed memory, handed back to the system instead of kept by glibc for later. Elsewhere nothing happens.

For a model whose weights are large, what glibc keeps is a third to a half of all that a run takes (docs/LOG.md): freed blocks
of up to 32 MiB, and below that everything that lies under one small block still in use.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys

import psutil

M_MMAP_THRESHOLD = -3  # malloc.h
LARGE_BLOCK = 4 * 2**20
KEPT_BY_GLIBC = 32 * 2**20  # DEFAULT_MMAP_THRESHOLD_MAX
WORTH_TRIMMING = 16 * 2**20  # bytes of a weight in float32, beside which walking the heap takes no time


def return_large_blocks(n_entries: int) -> None:
    """From now on hand blocks of LARGE_BLOCK and more back when they are freed, if the largest weight, of ``n_entries``,
    exceeds KEPT_BY_GLIBC in float32. For smaller models the kept blocks are small, and asking for every block anew is slow."""
    if 4 * n_entries > KEPT_BY_GLIBC:
        _glibc("mallopt", M_MMAP_THRESHOLD, LARGE_BLOCK)


def return_free_pages(n_entries: int) -> None:
    """Hand free pages back that lie between blocks in use, after work on a weight of ``n_entries``."""
    if 4 * n_entries >= WORTH_TRIMMING:
        _glibc("malloc_trim", 0)


def release_models() -> None:
    """Hand back models that nothing refers to but their own hooks and trainers, and what a GPU's allocator keeps of them."""
    gc.collect()
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    _glibc("malloc_trim", 0)


def resident_nbytes() -> int:
    """Memory of this process, without what was freed and only kept for later."""
    gc.collect()
    _glibc("malloc_trim", 0)
    return int(psutil.Process().memory_info().rss)


def _glibc(function: str, *arguments: int) -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):
        getattr(ctypes.CDLL(None), function)(*arguments)
