"""The block formats of llama.cpp as rows: which levels a code stands for, how blocks are scaled, where the bits lie (no torch).

A row of weights is cut into records of ``record`` weights that are stored together, and those into blocks of ``block``
weights with one scale: weight = scale * level + minimum. The scale of a record is a 16-bit float (or a power of two);
in formats with steps the scale of each block is that float times a small integer, and likewise for the minimum.
Source: ggml-common.h and ggml-quants.c of llama.cpp; tests/formats/test_records.py compares every row with the gguf package.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from bitwright.formats.base import Format, whole_groups

IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1_LEVELS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # doubled, as llama.cpp stores MXFP4


@dataclass(frozen=True)
class Plane:
    """Some bits of each code. Bytes come in groups of ``run``; each group holds 8 / bits runs of ``run`` codes, the first
    run in the lowest bits."""

    bits: int
    run: int


@dataclass(frozen=True)
class Steps:
    """Integer scales of the blocks of a record: ``layout`` names their packing, ``lowest`` and ``highest`` their range."""

    layout: str
    lowest: int
    highest: int


@dataclass(frozen=True)
class GgmlFormat(Format):
    """One block format. ``fields`` are the parts of a record in file order: d and m are float16, e a power of two,
    low and high the planes of the codes, steps the integer scales, ternary five codes to a byte."""

    name: str
    levels: tuple[float, ...]  # by code
    record: int
    block: int
    fields: tuple[tuple[str, int], ...]  # (name, bytes)
    low: Plane | None = None
    high: Plane | None = None
    steps: Steps | None = None
    unwritten: int = 0  # last levels that a decoder knows and llama.cpp's encoder never writes

    @property
    def written_levels(self) -> tuple[float, ...]:
        """The levels, by code, that an encoder may use."""
        return self.levels[: len(self.levels) - self.unwritten]

    @property
    def is_uniform(self) -> bool:
        """Whether the levels are consecutive integers."""
        return all(after - before == 1 for before, after in pairwise(self.levels))

    @property
    def has_power_scale(self) -> bool:
        """Whether scales are powers of two."""
        return any(name == "e" for name, _ in self.fields)

    @property
    def record_nbytes(self) -> int:
        return sum(size for _, size in self.fields)

    @property
    def has_minimum(self) -> bool:
        return any(name == "m" for name, _ in self.fields)

    def unavailable(self, n_cols: int) -> str | None:
        return whole_groups(n_cols, self.record)


def _integers(count: int, first: int = 0) -> tuple[float, ...]:
    return tuple(float(first + i) for i in range(count))


_K_STEPS = Steps("six_bit_pairs", 0, 63)
_ROWS = (
    GgmlFormat("q4_0", _integers(16, -8), 32, 32, (("d", 2), ("low", 16)), Plane(4, 16)),
    GgmlFormat("q4_1", _integers(16), 32, 32, (("d", 2), ("m", 2), ("low", 16)), Plane(4, 16)),
    GgmlFormat("q5_0", _integers(32, -16), 32, 32, (("d", 2), ("high", 4), ("low", 16)), Plane(4, 16), Plane(1, 1)),
    GgmlFormat("q5_1", _integers(32), 32, 32, (("d", 2), ("m", 2), ("high", 4), ("low", 16)), Plane(4, 16), Plane(1, 1)),
    GgmlFormat("q8_0", _integers(256, -128), 32, 32, (("d", 2), ("low", 32)), Plane(8, 32)),
    GgmlFormat(
        "q2_k",
        _integers(4),
        256,
        16,
        (("steps", 16), ("low", 64), ("d", 2), ("m", 2)),
        Plane(2, 32),
        steps=Steps("nibble_pairs", 0, 15),
    ),
    GgmlFormat(
        "q3_k",
        _integers(8, -4),
        256,
        16,
        (("high", 32), ("low", 64), ("steps", 12), ("d", 2)),
        Plane(2, 32),
        Plane(1, 32),
        Steps("six_bit", -32, 31),
    ),
    GgmlFormat("q4_k", _integers(16), 256, 32, (("d", 2), ("m", 2), ("steps", 12), ("low", 128)), Plane(4, 32), None, _K_STEPS),
    GgmlFormat(
        "q5_k",
        _integers(32),
        256,
        32,
        (("d", 2), ("m", 2), ("steps", 12), ("high", 32), ("low", 128)),
        Plane(4, 32),
        Plane(1, 32),
        _K_STEPS,
    ),
    GgmlFormat(
        "q6_k",
        _integers(64, -32),
        256,
        16,
        (("low", 128), ("high", 64), ("steps", 16), ("d", 2)),
        Plane(4, 64),
        Plane(2, 32),
        Steps("int8", -128, 127),
    ),
    GgmlFormat("iq4_nl", tuple(map(float, IQ4_LEVELS)), 32, 32, (("d", 2), ("low", 16)), Plane(4, 16)),
    GgmlFormat(
        "iq4_xs",
        tuple(map(float, IQ4_LEVELS)),
        256,
        32,
        (("d", 2), ("steps", 6), ("low", 128)),
        Plane(4, 16),
        steps=Steps("six_bit_split", -32, 31),
    ),
    GgmlFormat("tq1_0", _integers(3, -1), 256, 256, (("ternary", 52), ("d", 2))),
    GgmlFormat("tq2_0", _integers(4, -1), 256, 256, (("low", 64), ("d", 2)), Plane(2, 32), unwritten=1),
    GgmlFormat("mxfp4", tuple(map(float, E2M1_LEVELS)), 32, 32, (("e", 1), ("low", 16)), Plane(4, 16)),
)
GGML_FORMATS: dict[str, GgmlFormat] = {row.name: row for row in _ROWS}
