"""Cross-entropy without logits: the output head runs on some tokens at a time, forward and backward at once.

As in cut cross-entropy (arXiv 2411.09009), but with products that any device has. The gradient by the states is made while the
logits of a chunk are there, since the head is frozen; nothing of size tokens x vocabulary is ever kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bitwright.finetune.weights import FrozenWeight

CHUNK_ENTRIES = 1 << 23  # logits that exist at once: 32 MiB in float32


class _SummedLoss(torch.autograd.Function):
    """Sum over tokens of -log softmax(cap(scale h W^T))[label], and its gradient by h."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: FrozenWeight, labels: Tensor, scale: float, cap: float) -> Tensor:
        rows = max(1, CHUNK_ENTRIES // head.n_rows)
        gradient = torch.empty_like(states) if states.requires_grad else None
        total = torch.zeros((), dtype=torch.float64, device=states.device)
        for start in range(0, len(states), rows):
            part, wanted = states[start : start + rows], labels[start : start + rows, None]
            logits = head.times(part).float().mul_(scale)
            slope = None
            if cap:
                logits = logits.div_(cap).tanh_()
                slope = 1 - logits.square() if gradient is not None else None
                logits = logits.mul_(cap)
            normalizer = logits.logsumexp(1, keepdim=True)
            total += (normalizer - logits.gather(1, wanted)).double().sum()
            if gradient is not None:
                by_logits = logits.sub_(normalizer).exp_()
                by_logits.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=by_logits.dtype))
                if slope is not None:
                    by_logits *= slope
                gradient[start : start + rows] = head.back(by_logits.mul_(scale).to(states.dtype))
        ctx.gradient = gradient
        return total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        gradient = None if ctx.gradient is None else ctx.gradient.mul_(g.to(ctx.gradient.dtype))
        return gradient, None, None, None, None


def summed_loss(states: Tensor, head: FrozenWeight, labels: Tensor, scale: float = 1.0, cap: float = 0.0) -> Tensor:
    """Sum of the negative log-likelihoods of ``labels`` [T] after ``states`` [T, K], float32.

    ``scale``: factor of the logits (Granite, Cohere); ``cap``: logits become cap tanh(logits / cap) (Gemma 2). Tokens without a
    label are left out before, so that they never reach the head. The gradient by ``states`` may be asked for once.
    """
    loss: Tensor = _SummedLoss.apply(states, head, labels, scale, cap)  # type: ignore[no-untyped-call]
    return loss
