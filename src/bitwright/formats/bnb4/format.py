"""The 4-bit formats of bitsandbytes: sixteen levels, one scale per block of consecutive weights (no torch)."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from bitwright.formats.base import Format, whole_groups
from bitwright.formats.bnb4.levels import FP4_LEVELS, NF4_LEVELS

NESTED_BLOCK_SIZE = 256  # scales that share one second-level scale under double quantization
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class BlockFormat(Format):
    """Four-bit codes in blocks of consecutive weights (row-major), one scale per block.

    weight = levels[code] * scale. With ``double_quant`` the scale is itself an 8-bit code:
    scale = map[scale_code] * nested_scale + offset, one nested_scale per 256 scales (QLoRA, arXiv 2305.14314, section 3).
    """

    name: str
    grid: str
    levels: tuple[float, ...]
    block_size: int
    double_quant: bool

    def unavailable(self, n_cols: int) -> str | None:
        """Blocks that run across rows: a file can hold them, but the AVX-512 kernel of bitsandbytes decodes them wrongly
        (seen in 0.50.2; docs/LOG.md)."""
        return whole_groups(n_cols, self.block_size)

    def rows_together(self, n_cols: int) -> int:
        """Rows until a second-level scale ends where a row does."""
        shared = NESTED_BLOCK_SIZE * self.block_size if self.double_quant else 1
        return shared // gcd(shared, n_cols)


def _rows() -> dict[str, BlockFormat]:
    rows = {}
    for grid, levels in (("nf4", NF4_LEVELS), ("fp4", FP4_LEVELS)):
        for block_size in BLOCK_SIZES:
            for double_quant in (False, True):
                name = f"{grid}-b{block_size}" + ("-dq" if double_quant else "")
                rows[name] = BlockFormat(name, grid, levels, block_size, double_quant)
    return rows


BLOCK_FORMATS: dict[str, BlockFormat] = _rows()
