"""Formats against the library whose files they become."""

from itertools import product

import bitsandbytes.functional as bnb
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.formats.bnb4.codes import BlockCodes, PlainScales, dynamic_map, pack_nibbles, unpack_nibbles
from bitwright.formats.bnb4.format import BLOCK_FORMATS, BLOCK_SIZES


@pytest.mark.parametrize("grid", ["nf4", "fp4"])
def test_levels_are_those_of_bitsandbytes(grid: str) -> None:
    ours = BLOCK_FORMATS[f"{grid}-b64"]
    assert torch.equal(torch.tensor(ours.levels), bnb.get_4bit_type(grid, "cpu"))


def test_dynamic_map_is_that_of_bitsandbytes() -> None:
    assert torch.equal(dynamic_map(), bnb.create_dynamic_map())


def loaded(size: int) -> bool:
    """Whether bitsandbytes takes blocks of this size."""
    try:
        bnb.quantize_4bit(torch.ones(2, 4096), blocksize=size)
    except ValueError:
        return False
    return True


def test_every_block_size_that_bitsandbytes_loads_is_a_row() -> None:
    sizes = [2**i for i in range(3, 16) if loaded(2**i)]
    assert sizes == list(BLOCK_SIZES)
    rows = product(("nf4", "fp4"), sizes, ("", "-dq"))
    assert set(BLOCK_FORMATS) == {f"{grid}-b{size}{nested}" for grid, size, nested in rows}


@given(st.lists(st.integers(0, 15), min_size=1, max_size=99))
def test_nibbles_survive_packing(values: list[int]) -> None:
    """The first of a pair in the high half of its byte, as bitsandbytes has it."""
    digits = "".join(f"{value:x}" for value in values)
    packed = torch.tensor(list(bytes.fromhex(digits + "0" * (len(values) % 2))), dtype=torch.uint8)
    code = torch.tensor(values, dtype=torch.uint8)
    assert torch.equal(pack_nibbles(code), packed)
    assert torch.equal(unpack_nibbles(packed, len(values)), code)


def test_decoding_repeats_a_scale_over_its_block_and_across_rows() -> None:
    format = BLOCK_FORMATS["nf4-b32"]
    codes = BlockCodes(format, (3, 20), torch.full((60,), 15, dtype=torch.uint8), PlainScales(torch.tensor([2.0, 3.0])))
    assert codes.decode().reshape(-1).tolist() == [2.0] * 32 + [3.0] * 28
    back = BlockCodes.from_tensors(format, (3, 20), codes.tensors())
    assert torch.equal(back.decode(), codes.decode())
