"""Coordinate descent never raises the objective, and keeps to what storage holds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.formats.base import Packed
from bitwright.formats.bnb4.format import BLOCK_FORMATS
from bitwright.formats.families import unpacked
from bitwright.rounding.base import Rounder
from bitwright.rounding.bnb4 import BNB4, nearest, rounded
from bitwright.rounding.kernels.error_feedback import Feedback
from tests.rounding.test_error_feedback import correlated_moment, objective
from tests.rounding.test_row_feedback import FORMATS

NAMES = ("nf4-b32-dq", "nf4-b64-dq", "nf4-b64", "fp4-b64-dq", "nf4-b128-dq")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(NAMES), st.booleans())
def test_the_objective_never_grows(seed: int, name: str, from_nearest: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, format = torch.randn(12, 256, generator=generator) * 0.05, BLOCK_FORMATS[name]
    moment = correlated_moment(256, seed % 7) + 0.01 * torch.eye(256)
    start = nearest(weight, format) if from_nearest else rounded(weight, Feedback.of(moment.clone()), [format], sweeps=0)[0]
    once = BNB4.descended(weight, start, moment)
    twice = BNB4.descended(weight, once, moment)
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
    assert torch.equal(BNB4.descended(exact, start, correlated_moment(128) + torch.eye(128)).decode(), exact)
    zero = nearest(torch.zeros(8, 128), format)
    assert torch.equal(BNB4.descended(torch.zeros(8, 128), zero, torch.eye(128)).decode(), torch.zeros(8, 128))


@pytest.mark.parametrize(("rounder", "name"), FORMATS)
def test_codes_of_every_family_follow_another_moment(rounder: Rounder, name: str) -> None:
    """As where more text comes later: from the codes of one moment to fewer losses under the next, in the same format."""
    torch.manual_seed(2)
    weight, format = torch.randn(24, 512) * 0.05, rounder.formats[name]
    first, later = (correlated_moment(512, seed) + 0.01 * torch.eye(512) for seed in (1, 2))
    start = rounder.calibrated(weight, Feedback.of(first.clone()), [format])[0]
    moved = rounder.descended(weight, start, later)
    stored = unpacked(Packed.of(moved))
    assert objective(weight, stored, later) < 0.9 * objective(weight, start, later)


@pytest.mark.parametrize(("rounder", "name"), FORMATS)
def test_a_weight_of_one_row_leaves_the_codes_that_it_is_given(rounder: Rounder, name: str) -> None:
    torch.manual_seed(3)
    weight, format = torch.randn(1, 512) * 0.05, rounder.formats[name]
    start = rounder.nearest(weight, format)
    before = Packed.of(start).tensors
    kept = {part: tensor.clone() for part, tensor in before.items()}
    moved = rounder.descended(weight, start, correlated_moment(512) + 0.01 * torch.eye(512))
    assert not torch.equal(unpacked(Packed.of(moved)).decode(), unpacked(Packed.of(start)).decode())
    assert all(torch.equal(tensor, kept[part]) for part, tensor in Packed.of(start).tensors.items())
