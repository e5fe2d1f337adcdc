"""Sizes as people type and read them: three digits and a unit (no torch)."""

from __future__ import annotations

UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB"), (1, "B"))
DIGITS = 3


def rounded_down(nbytes: int) -> int:
    """The largest number of three digits and zeros that is not above ``nbytes``.

    >>> rounded_down(6_379_999_999), rounded_up(6_370_000_001)
    (6370000000, 6380000000)
    """
    step = _step(nbytes)
    return nbytes // step * step


def rounded_up(nbytes: int) -> int:
    """The smallest that is not below."""
    return -rounded_down(-nbytes)


def as_option(nbytes: int) -> str:
    """``nbytes``, which is rounded, to be typed: 6.37GB."""
    size, unit = next((size, unit) for size, unit in UNITS if nbytes >= size or size == 1)
    return f"{nbytes / size:g}{unit}"


def in_words(nbytes: int) -> str:
    """``nbytes`` rounded to three digits, to be read: 6.37 GB."""
    nbytes = round(nbytes / _step(nbytes)) * _step(nbytes)
    size, unit = next((size, unit) for size, unit in UNITS if nbytes >= size or size == 1)
    return f"{nbytes / size:g} {unit}"


def _step(nbytes: int) -> int:
    return int(10 ** max(0, len(str(abs(nbytes))) - DIGITS))
