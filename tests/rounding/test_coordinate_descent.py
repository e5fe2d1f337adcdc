"""Coordinate descent never raises the objective, and keeps to what storage holds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitwright.formats.bnb4.codes import BlockCodes
from bitwright.formats.bnb4.format import BLOCK_FORMATS
from bitwright.rounding.bnb4 import nearest, rounded
from bitwright.rounding.kernels.block_scales import ScaleTable
from bitwright.rounding.kernels.blocks import descend_blocks
from bitwright.rounding.kernels.error_feedback import Feedback
from bitwright.rounding.kernels.grid import TableGrid
from tests.rounding.test_error_feedback import correlated_moment, objective

NAMES = ("nf4-b32-dq", "nf4-b64-dq", "nf4-b64", "fp4-b64-dq", "nf4-b128-dq")


def coordinate_descent(weight: Tensor, codes: BlockCodes, moment: Tensor) -> BlockCodes:
    """One sweep from any codes."""
    table, format = ScaleTable.of(codes.format, codes.scales, len(weight)), codes.format
    levels, grid = torch.tensor(format.levels), TableGrid.of(format.levels, weight.device)
    code = codes.code.reshape(weight.shape).t().contiguous()
    return table.codes(descend_blocks(weight, code, codes.decode(), grid, levels, table, moment, 1))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(NAMES), st.booleans())
def test_the_objective_never_grows(seed: int, name: str, from_nearest: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, format = torch.randn(12, 256, generator=generator) * 0.05, BLOCK_FORMATS[name]
    moment = correlated_moment(256, seed % 7) + 0.01 * torch.eye(256)
    start = nearest(weight, format) if from_nearest else rounded(weight, Feedback.of(moment.clone()), [format], sweeps=0)[0]
    once = coordinate_descent(weight, start, moment)
    twice = coordinate_descent(weight, once, moment)
    slack = 1.002  # the look-up table is blind within a cell of a bound
    assert objective(weight, once, moment) <= slack * objective(weight, start, moment)
    assert objective(weight, twice, moment) <= slack * objective(weight, once, moment)


@pytest.mark.parametrize("name", NAMES)
def test_it_improves_on_error_feedback(name: str) -> None:
    torch.manual_seed(8)
    weight, format = torch.randn(64, 256) * 0.05, BLOCK_FORMATS[name]
    moment = correlated_moment(256) + 0.01 * torch.eye(256)
    start, better = (rounded(weight, Feedback.of(moment.clone()), [format], sweeps=sweeps)[0] for sweeps in (0, 1))
    assert objective(weight, better, moment) < 0.97 * objective(weight, start, moment)


def test_an_exact_weight_stays_exact_and_zero_stays_zero() -> None:
    format = BLOCK_FORMATS["nf4-b64-dq"]
    start = nearest(torch.randn(8, 128), format)
    exact = start.decode()
    assert torch.equal(coordinate_descent(exact, start, correlated_moment(128) + torch.eye(128)).decode(), exact)
    zero = nearest(torch.zeros(8, 128), format)
    assert torch.equal(coordinate_descent(torch.zeros(8, 128), zero, torch.eye(128)).decode(), torch.zeros(8, 128))
