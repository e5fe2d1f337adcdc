"""The sixteen levels of the 4-bit grids, in code order.

Sources: NF4 from QLoRA (arXiv 2305.14314), FP4 from bitsandbytes.
tests/formats/test_formats.py compares each table with the one that bitsandbytes carries.
"""

from __future__ import annotations

NF4_LEVELS: tuple[float, ...] = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

# Sign, two exponent bits, one mantissa bit; the magnitudes are multiples of 1/192 with 12/12 as the largest.
_FP4_MAGNITUDES = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
FP4_LEVELS: tuple[float, ...] = tuple(m / 12.0 for m in _FP4_MAGNITUDES) + tuple(-m / 12.0 for m in _FP4_MAGNITUDES)
