"""A format is a numeric contract: which levels a code stands for, and how the scale of each block is stored."""

from __future__ import annotations

from dataclasses import dataclass

from bitwright.formats.codebook import CODEBOOK_FORMATS, CodebookFormat
from bitwright.formats.ggml import GGML_FORMATS, GgmlFormat
from bitwright.formats.grids import FP4_LEVELS, NF4_LEVELS

NESTED_BLOCK_SIZE = 256  # scales that share one second-level scale under double quantization
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class BlockFormat:
    """Four-bit codes in blocks of consecutive weights (row-major), one scale per block.

    weight = levels[code] * scale. With ``double_quant`` the scale is itself an 8-bit code:
    scale = map[scale_code] * nested_scale + offset, one nested_scale per 256 scales (QLoRA, arXiv 2305.14314, section 3).
    """

    name: str
    grid: str
    levels: tuple[float, ...]
    block_size: int
    double_quant: bool


@dataclass(frozen=True)
class SixteenBit:
    """The weight as the source stores it: bfloat16 or float16, unchanged."""

    name: str = "16bit"


Quantized = BlockFormat | GgmlFormat | CodebookFormat
Format = Quantized | SixteenBit
SIXTEEN_BIT = SixteenBit()


def _rows() -> dict[str, Format]:
    rows: dict[str, Format] = {SIXTEEN_BIT.name: SIXTEEN_BIT}
    for grid, levels in (("nf4", NF4_LEVELS), ("fp4", FP4_LEVELS)):
        for block_size in BLOCK_SIZES:
            for double_quant in (False, True):
                name = f"{grid}-b{block_size}" + ("-dq" if double_quant else "")
                rows[name] = BlockFormat(name, grid, levels, block_size, double_quant)
    return rows | GGML_FORMATS | CODEBOOK_FORMATS


FORMATS: dict[str, Format] = _rows()


def quantized(name: str) -> Quantized:
    """The format called ``name``, which is not 16 bit."""
    format = FORMATS[name]
    assert not isinstance(format, SixteenBit)
    return format
