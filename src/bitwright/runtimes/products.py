"""Products of 16-bit numbers on a processor that is slow at them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from bitwright.host.device import quick_dtype

LEAST_ROWS = 4  # of fewer, widening the weights costs more than the product


def quick_products(device: torch.device) -> AbstractContextManager[object]:
    """Where ``device`` is slow at bfloat16, linears of 16-bit numbers are computed in float32 and rounded to 16 bit.

    That is what a product in bfloat16 is: its sums run in float32, and it is rounded once. Only the order of the sums differs.
    """
    return _WideProducts() if quick_dtype(device) == torch.float32 else nullcontext()


class _WideProducts(TorchFunctionMode):
    """Stands in for ``torch.nn.functional.linear``, whoever calls it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        wide = func is linear and args[0].itemsize == 2 and args[0].shape[:-1].numel() >= LEAST_ROWS
        return (_linear if wide else func)(*args, **(kwargs or {}))


def _linear(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    wide = linear(states.float(), weight.float(), None if bias is None else bias.float())
    return wide.to(states.dtype)
