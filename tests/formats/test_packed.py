"""Codes as files keep them: what is packed and read again decodes to the same bits, in every format of every container."""

import pytest
import torch

from bitwright.containers.registry import CONTAINERS, container_of
from bitwright.formats.base import Codes, Format, Packed
from bitwright.formats.bnb4.codes import BlockCodes, by_kernel
from bitwright.formats.bnb4.format import BlockFormat
from bitwright.measure.vocabulary import joined
from bitwright.rounding.base import Rounder
from bitwright.rounding.bnb4 import BNB4
from bitwright.rounding.kernels.error_feedback import Feedback

ROUNDERS = dict.fromkeys(rounder for name in CONTAINERS for rounder in container_of(name).rounders)
EVERY = [(rounder, format) for rounder in ROUNDERS for format in rounder.formats.values()]
WIDTH = 512  # two records of every format but the widest blocks
each_format = pytest.mark.parametrize(("rounder", "format"), EVERY, ids=[format.name for _, format in EVERY])


def weights(n_rows: int, n_cols: int) -> torch.Tensor:
    """Gaussian rows, one of zeros, one of a single sign, and an outlier."""
    w = torch.randn(n_rows, n_cols, generator=torch.Generator().manual_seed(5)) * 0.03
    w[0], w[1], w[2, 7] = 0.0, w[1].abs(), 9.0
    return w


def rounded(rounder: Rounder, format: Format) -> Codes:
    n_cols = max(WIDTH, getattr(format, "block_size", 0))
    return rounder.nearest(weights(5, n_cols), format)


def again(rounder: Rounder, packed: Packed) -> Codes:
    return rounder.codes.from_tensors(packed.format, packed.shape, packed.tensors)


@each_format
def test_packed_codes_decode_to_the_same_bits(rounder: Rounder, format: Format) -> None:
    codes = rounded(rounder, format)
    packed = Packed.of(codes)
    assert (packed.format, packed.shape) == (format, codes.shape)
    assert set(packed.tensors) <= set(rounder.codes.parts)
    found = again(rounder, packed)
    assert type(found) is type(codes)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(found.decode(dtype), codes.decode(dtype))
    twice = found.tensors()
    assert twice.keys() == packed.tensors.keys()
    assert all(torch.equal(tensor, packed.tensors[part]) for part, tensor in twice.items())


@each_format
def test_rows_rounded_apart_are_joined_to_the_same_bits(rounder: Rounder, format: Format) -> None:
    width = WIDTH if format.unavailable(WIDTH // 2) else WIDTH // 2
    if format.unavailable(width):
        pytest.skip("its blocks are wider than the rows")
    step = format.rows_together(width)
    value = weights(2 * step + 3, width)
    feedback = Feedback.of(torch.eye(width))
    codes = [rounder.calibrated(part, feedback, [format])[0] for part in value.split(step)]
    whole = joined([Packed.of(one) for one in codes], rounder.codes.common)
    assert (whole.format, whole.shape) == (format, tuple(value.shape))
    assert torch.equal(again(rounder, whole).decode(), torch.cat([one.decode() for one in codes]))


@pytest.mark.parametrize("format", BNB4.formats.values(), ids=lambda format: format.name)
def test_an_odd_number_of_codes_survives_too(format: Format) -> None:
    codes = BNB4.nearest(weights(3, 33), format)
    assert torch.equal(again(BNB4, Packed.of(codes)).decode(), codes.decode())


@pytest.mark.parametrize("format", BNB4.formats.values(), ids=lambda format: format.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitsandbytes_decodes_to_the_same_bits(format: BlockFormat, dtype: torch.dtype) -> None:
    """The kernel that a GPU takes; the same name stands for one of a processor."""
    packed = Packed.of(rounded(BNB4, format))
    found = by_kernel(format, packed.shape, packed.tensors, dtype)
    assert torch.equal(found, BlockCodes.decode_packed(format, packed.shape, packed.tensors, dtype))
