"""Symmetric integers in groups of a row's columns, one scale each (no torch): what GPTQ, compressed-tensors, AWQ and MLX store.

weight = code * scale with code an integer from -2^(bits - 1) to 2^(bits - 1) - 1 and the scale in bfloat16. How codes are laid
out in words is each container's business.
"""

from __future__ import annotations

from dataclasses import dataclass

from bitwright.formats.base import Format, whole_groups

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class GroupFormat(Format):
    """``bits`` a weight and one scale a group of ``group_size`` columns.

    >>> GROUP_FORMATS["w4-g64"].lowest, GROUP_FORMATS["w4-g64"].highest
    (-8, 7)
    """

    name: str
    bits: int
    group_size: int

    @property
    def lowest(self) -> int:
        return -(1 << self.bits - 1)

    @property
    def highest(self) -> int:
        return (1 << self.bits - 1) - 1

    def unavailable(self, n_cols: int) -> str | None:
        return whole_groups(n_cols, self.group_size)


GROUP_FORMATS: dict[str, GroupFormat] = {
    format.name: format for format in (GroupFormat(f"w{bits}-g{size}", bits, size) for bits in BITS for size in GROUP_SIZES)
}
