"""Ctrl-C in the middle of what would lose it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_back() -> Iterator[None]:
    """An interrupt meanwhile is raised at the end. Libraries that are written in C call Python back, and what is raised in
    there is printed and forgotten. Only the main thread is ever interrupted; in others this does nothing.

    >>> with held_back():
    ...     pass
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if seen:
        signal.raise_signal(signal.SIGINT)
