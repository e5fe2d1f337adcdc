"""Products of 16-bit numbers on a processor that is slow at them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import linear

from bitwright.host.device import quick_dtype

LEAST_ROWS = 4  # of fewer, widening the weights costs more than the product


@contextmanager
def quick_products(device: torch.device) -> Iterator[None]:
    """Where ``device`` is slow at bfloat16, linears of 16-bit numbers are computed in float32 and rounded to 16 bit.

    That is what a product in bfloat16 is: its sums run in float32, and it is rounded once. Only the order of the sums differs.
    What libraries compute inside operations of their own, as bitsandbytes does, is reached as well.
    """
    if quick_dtype(device) != torch.float32:
        yield
        return
    kept, functional.linear = functional.linear, _linear
    try:
        yield
    finally:
        functional.linear = kept


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Stands in for ``torch.nn.functional.linear``, whose names it has."""
    if input.itemsize != 2 or input.shape[:-1].numel() < LEAST_ROWS:
        return linear(input, weight, bias)
    return linear(input.float(), weight.float(), None if bias is None else bias.float()).to(input.dtype)
