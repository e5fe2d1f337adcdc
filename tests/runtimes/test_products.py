"""Products of 16-bit numbers where the processor is slow at them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bitwright.runtimes import products
from bitwright.runtimes.products import quick_products


@pytest.fixture(autouse=True)
def slow_at_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "quick_dtype", lambda device: torch.float32)


@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_the_exact_one_rounded_once(bias: bool) -> None:
    """Against double precision: a second rounding on the way, or one of the inputs, would be seen."""
    torch.manual_seed(0)
    linear = nn.Linear(96, 64, bias=bias, dtype=torch.bfloat16)
    states = torch.randn(2, 24, 96, dtype=torch.bfloat16)
    with quick_products(torch.device("cpu")):
        found = linear(states)
    exact = linear.double()(states.double())
    assert found.dtype == torch.bfloat16
    assert (found != exact.bfloat16()).double().mean() < 0.01  # ties
    assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all()


def test_float32_and_short_products_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_linear", lambda *_: pytest.fail("was widened"))
    with quick_products(torch.device("cpu")):
        nn.Linear(8, 8)(torch.ones(64, 8))
        nn.Linear(8, 8, dtype=torch.bfloat16)(torch.ones(products.LEAST_ROWS - 1, 8, dtype=torch.bfloat16))


def test_nothing_changes_where_bfloat16_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "quick_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(products, "_linear", lambda *_: pytest.fail("was widened"))
    with quick_products(torch.device("cpu")):
        nn.Linear(8, 8, dtype=torch.bfloat16)(torch.ones(64, 8, dtype=torch.bfloat16))
