"""Sizes as people write and read them (no torch)."""

from __future__ import annotations

import re

from bitwright.errors import fail

UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB"), (1, "B"))
DIGITS = 3
LEAST_NBYTES = 10**6  # of a size without a unit; nobody has so little memory


def size_nbytes(text: str) -> int | None:
    """Bytes in ``text`` such as 8GB or 800MiB; None for an empty text."""
    if not text:
        return None
    units = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4, "ki": 1024, "mi": 1024**2, "gi": 1024**3}
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]i?|)(b?)", text.strip().lower())
    if not match or match[2] not in units:
        raise fail("memory/syntax", text[:40], saw="not a size", wanted="a number and its unit, such as 8GB", help="8GB")
    nbytes = int(float(match[1]) * units[match[2]])
    if not match[2] and not match[3] and 0 < nbytes < LEAST_NBYTES:
        raise fail(
            "memory/unit",
            text[:40],
            saw=f"{nbytes} bytes: the unit is missing",
            wanted="a number and its unit, such as 8GB, 500MB or 8GiB",
            help=f"{match[1]}GB",
        )
    return nbytes


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


def in_units(nbytes: int) -> str:
    """``nbytes`` rounded to three digits, to be read: 6.37 GB."""
    nbytes = round(nbytes / _step(nbytes)) * _step(nbytes)
    size, unit = next((size, unit) for size, unit in UNITS if nbytes >= size or size == 1)
    return f"{nbytes / size:g} {unit}"


def _step(nbytes: int) -> int:
    return int(10 ** max(0, len(str(abs(nbytes))) - DIGITS))
