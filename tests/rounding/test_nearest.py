"""Nearest rounding is bitsandbytes' own, bit for bit."""

import bitsandbytes.functional as bnb
import pytest
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute as generic
from torch import Tensor

from bitwright.formats.bnb4.codes import pack_nibbles
from bitwright.formats.bnb4.format import BLOCK_FORMATS, BlockFormat
from bitwright.rounding.bnb4 import nearest


def odd_weights() -> dict[str, Tensor]:
    torch.manual_seed(1)
    outlier = torch.randn(64, 96) * 0.01
    outlier[3, 5] = 50.0
    zeros = torch.randn(16, 128)
    zeros[2:9] = 0.0
    return {
        "gaussian": torch.randn(96, 320) * 0.02,
        "row not a multiple of the block": torch.randn(7, 100),
        "one column pair": torch.randn(130, 2),
        "one outlier": outlier,
        "zero groups": zeros,
        "constant": torch.full((8, 64), 0.3),
        "negative zero": torch.full((4, 64), -0.0),
        "subnormal": torch.full((4, 64), 1e-30),
    }


@pytest.mark.parametrize("name", odd_weights())
@pytest.mark.parametrize("format", BLOCK_FORMATS.values(), ids=lambda f: f.name)
def test_codes_and_values_are_those_of_bitsandbytes(format: BlockFormat, name: str) -> None:
    weight = odd_weights()[name].bfloat16()
    codes = nearest(weight, format)
    packed, state = bnb.quantize_4bit(
        weight, blocksize=format.block_size, quant_type=format.grid, compress_statistics=format.double_quant
    )
    absmax = state.absmax
    if state.nested:
        absmax = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    expected = generic(packed.reshape(-1), absmax, state.code, format.block_size, weight.shape, torch.bfloat16)
    if format.grid == "nf4" or name not in ("zero groups", "negative zero"):  # FP4 has two codes for zero
        assert torch.equal(pack_nibbles(codes.code), packed.reshape(-1))
    assert torch.equal(codes.decode(torch.bfloat16), expected)
