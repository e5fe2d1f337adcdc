"""The in-place factor against the inverse in float64, over panel boundaries."""

import pytest
import torch

from bitwright.rounding.kernels.inverse_factor import PANEL, inverse_factor


@pytest.mark.parametrize("size", [1, 5, PANEL - 1, PANEL, PANEL + 1, 2 * PANEL + 88])
def test_factor_of_the_inverse(size: int) -> None:
    x = torch.randn(2 * size + 3, size, generator=torch.Generator().manual_seed(size))
    moment = x.t() @ x / size + 0.01 * torch.eye(size)
    storage = moment.clone()
    factor = inverse_factor(storage)
    assert factor is storage
    assert torch.equal(factor, factor.triu())
    wide = factor.double()
    expected = torch.linalg.inv(moment.double())
    assert (wide.t() @ wide - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("size", [3, PANEL + 5])
@pytest.mark.parametrize("place", [0, -1])
def test_indefinite_matrices_have_none(size: int, place: int) -> None:
    moment = torch.eye(size)
    moment[place, place] = -1.0
    assert inverse_factor(moment) is None
