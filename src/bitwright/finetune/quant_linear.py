"""A linear layer whose frozen weight stays packed, with a low-rank change that is trained (QLoRA, arXiv 2305.14314).

y = x W^T + s (x A^T) B^T. W is decoded some rows at a time, forward and backward; nothing of size tokens x outputs is kept. The
layer has no state that an evaluation could change.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bitwright.finetune.weights import FrozenWeight


class _Product(torch.autograd.Function):
    """x W^T + s (x A^T) B^T, and its gradients by x, A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: FrozenWeight, a: Tensor | None, b: Tensor | None, scale: float) -> Tensor:
        ctx.weight, ctx.scale = weight, scale
        ctx.save_for_backward(x, a, b)
        y = weight.times(x)
        if a is not None and b is not None:
            y.addmm_(x @ a.t(), b.t(), alpha=scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
        x, a, b = ctx.saved_tensors
        by_x = ctx.weight.back(g) if ctx.needs_input_grad[0] else None
        by_a = by_b = None
        if a is not None:
            inner = g @ b
            if by_x is not None:
                by_x.addmm_(inner, a, alpha=ctx.scale)
            by_a = (inner.t() @ x).mul_(ctx.scale)
            by_b = (g.t() @ (x @ a.t())).mul_(ctx.scale)
        return by_x, None, by_a, by_b, None


class QuantLinear(nn.Module):
    """``weight`` [N, K] stays as it is; ``rank`` > 0 adds a trained change of that rank, which begins at zero.

    A begins as PEFT begins it (Kaiming uniform), B at zero; both are float32 and are cast to the type of the input. With
    ``rslora`` the change is scaled by alpha / sqrt(rank) (arXiv 2312.03732), else by alpha / rank.
    """

    def __init__(
        self, weight: FrozenWeight, bias: Tensor | None = None, rank: int = 0, alpha: float = 16.0, rslora: bool = False
    ) -> None:
        super().__init__()
        self.weight, self.rank = weight, rank
        self.in_features, self.out_features = weight.n_cols, weight.n_rows
        self.register_buffer("bias", bias, persistent=False)
        self.bias: Tensor | None
        self.scale = alpha / (math.sqrt(rank) if rslora else rank) if rank else 0.0
        self.lora_a: nn.Parameter | None = None
        self.lora_b: nn.Parameter | None = None
        if rank:
            self.lora_a = nn.Parameter(torch.empty(rank, weight.n_cols))
            self.lora_b = nn.Parameter(torch.zeros(weight.n_rows, rank))
            nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """y [..., N] of ``x`` [..., K], in the type of ``x``."""
        a, b = (None if part is None else part.to(x.dtype) for part in (self.lora_a, self.lora_b))
        y: Tensor = _Product.apply(x.reshape(-1, self.in_features), self.weight, a, b, self.scale)  # type: ignore[no-untyped-call]
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)
