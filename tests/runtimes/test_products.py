"""Products of 16-bit numbers where the processor is slow at them."""

import bitsandbytes
import pytest
import torch
from torch import nn
from torch.nn import functional

from bitwright.runtimes import products
from bitwright.runtimes.products import LEAST_ROWS, quick_products

CPU, BF16, F32 = torch.device("cpu"), torch.bfloat16, torch.float32
NATIVE = functional.linear


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The types of what is multiplied, on a processor that is slow at bfloat16."""
    found: list[torch.dtype] = []

    def noted(*args: torch.Tensor) -> torch.Tensor:
        found.append(args[0].dtype)
        return NATIVE(*args)

    monkeypatch.setattr(products, "quick_dtype", lambda device: F32)
    monkeypatch.setattr(products, "linear", noted)
    return found


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.usefixtures("multiplied")
def test_a_product_is_the_exact_one_rounded_once(bias: bool) -> None:
    """Against double precision: a second rounding on the way, or one of the inputs, would be seen."""
    torch.manual_seed(0)
    linear = nn.Linear(96, 64, bias=bias, dtype=BF16)
    states = torch.randn(2, 24, 96, dtype=BF16)
    with quick_products(CPU):
        found = linear(states)
    exact = linear.double()(states.double())
    assert found.dtype == BF16
    assert (found != exact.bfloat16()).double().mean() < 0.01  # ties
    assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all()


def test_float32_and_short_products_stay_as_they_are(multiplied: list[torch.dtype]) -> None:
    narrow = nn.Linear(8, 8, dtype=BF16)
    with quick_products(CPU):
        nn.Linear(8, 8)(torch.ones(64, 8))
        narrow(torch.ones(LEAST_ROWS - 1, 8, dtype=BF16))
        narrow(torch.ones(LEAST_ROWS, 8, dtype=BF16))
    assert multiplied == [F32, BF16, F32]
    narrow(torch.ones(64, 8, dtype=BF16))
    assert len(multiplied) == 3, "nothing of it is left behind"


def test_what_bitsandbytes_multiplies_inside_is_reached(multiplied: list[torch.dtype]) -> None:
    layer = bitsandbytes.nn.Linear4bit(64, 32, bias=False, compute_dtype=BF16, quant_type="nf4").to("cpu")
    layer.support_avx512bf16_for_cpu = False  # as a model is run that is compared
    with quick_products(CPU), torch.no_grad():
        layer(torch.randn(8, 64, dtype=BF16))
    assert multiplied == [F32]


def test_nothing_changes_where_bfloat16_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "quick_dtype", lambda device: BF16)
    with quick_products(CPU):
        assert functional.linear is NATIVE
