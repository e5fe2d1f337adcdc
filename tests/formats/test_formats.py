"""Formats against the library whose files they become."""

import bitsandbytes.functional as bnb
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.formats.codes import Codes, PlainScales, dynamic_map
from bitwright.formats.format import BLOCK_SIZES, FORMATS, BlockFormat
from bitwright.formats.pack import codes_from_tensors, codes_to_tensors, pack_nibbles, unpack_nibbles


@pytest.mark.parametrize("grid", ["nf4", "fp4"])
def test_levels_are_those_of_bitsandbytes(grid: str) -> None:
    ours = FORMATS[f"{grid}-b64"]
    assert isinstance(ours, BlockFormat)
    assert torch.equal(torch.tensor(ours.levels), bnb.get_4bit_type(grid, "cpu"))


def test_dynamic_map_is_that_of_bitsandbytes() -> None:
    assert torch.equal(dynamic_map(), bnb.create_dynamic_map())


def test_every_block_size_that_bitsandbytes_loads_is_a_row() -> None:
    for size in BLOCK_SIZES:
        bnb.quantize_4bit(torch.ones(2, 4096), blocksize=size)
        assert {f"nf4-b{size}", f"nf4-b{size}-dq", f"fp4-b{size}", f"fp4-b{size}-dq"} <= set(FORMATS)
    with pytest.raises(ValueError, match="blocksize"):
        bnb.quantize_4bit(torch.ones(2, 4096), blocksize=16)


@given(st.lists(st.integers(0, 15), min_size=1, max_size=99))
def test_nibbles_survive_packing(values: list[int]) -> None:
    code = torch.tensor(values, dtype=torch.uint8)
    assert torch.equal(unpack_nibbles(pack_nibbles(code), len(values)), code)


def test_decoding_repeats_a_scale_over_its_block_and_across_rows() -> None:
    format = FORMATS["nf4-b32"]
    assert isinstance(format, BlockFormat)
    codes = Codes(format, (3, 20), torch.full((60,), 15, dtype=torch.uint8), PlainScales(torch.tensor([2.0, 3.0])))
    assert codes.decode().reshape(-1).tolist() == [2.0] * 32 + [3.0] * 28
    back = codes_from_tensors(format, (3, 20), codes_to_tensors(codes))
    assert torch.equal(back.decode(), codes.decode())
