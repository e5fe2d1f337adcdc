"""Losses without logits: the output head runs on some tokens at a time, forward and backward at once.

As in cut cross-entropy (arXiv 2411.09009), but with products that any device has. The gradient by the states is made while the
logits of a chunk are there, since the head is frozen; nothing of size tokens x vocabulary is ever kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bitwright.finetune.weights import FrozenWeight
from bitwright.models.logits import PLAIN, LogitRule

CHUNK_ENTRIES = 1 << 23  # logits that exist at once: 32 MiB in float32
LEAST_TAIL = 1e-7  # of the probability beside the kept tokens, so that its logarithm exists


@dataclass(frozen=True)
class Head:
    """An output head that is frozen: logits are what ``rule`` makes of h W^T + ``bias``."""

    weight: FrozenWeight
    bias: Tensor | None = None  # [V]
    rule: LogitRule = PLAIN

    def logits(self, states: Tensor) -> Tensor:
        """Logits [T, V] of ``states`` [T, K], float32."""
        products = self.weight.times(states).float()
        if self.bias is not None:
            products += self.bias
        return self.rule.logits(products)


class Target(Protocol):
    """What the logits of T tokens should be."""

    def apart(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """How far ``logits`` [t, V] of the tokens ``rows`` are from it, summed, float64; and the gradient, in their place."""


@dataclass(frozen=True)
class Labels:
    """One token each: the negative log-likelihood of ``labels`` int64 [T]."""

    labels: Tensor

    def apart(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        wanted = self.labels[rows, None]
        normalizer = logits.logsumexp(1, keepdim=True)
        total = (normalizer - logits.gather(1, wanted)).double().sum()
        gradient = logits.sub_(normalizer).exp_()
        gradient.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=gradient.dtype))
        return total, gradient


@dataclass(frozen=True)
class Kept:
    """A distribution each, of which the likeliest tokens are kept and all others count as one: KL(kept || model).

    ``likeliest`` [T, K], their ``log_p`` [T, K], and ``log_tail`` [T] of the rest, -inf where there is none.
    """

    likeliest: Tensor
    log_p: Tensor
    log_tail: Tensor

    def apart(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        at, log_p = self.likeliest[rows].long(), self.log_p[rows].float()
        log_rest = self.log_tail[rows].float()
        p, rest = log_p.exp(), log_rest.exp()
        normalizer = logits.logsumexp(1, keepdim=True)
        log_q = logits.gather(1, at).float() - normalizer
        q = log_q.exp()
        tail = (1 - q.sum(1)).clamp_(min=LEAST_TAIL)
        total = (p * (log_p - log_q)).double().sum()
        total += torch.where(rest > 0, rest * (log_rest - tail.log()), 0.0).double().sum()
        gradient = logits.sub_(normalizer).exp_().mul_((1 - rest / tail)[:, None])
        gradient.scatter_(1, at, (q - p).to(gradient.dtype))
        return total, gradient


class _Summed(torch.autograd.Function):
    """Sum over tokens of what a target finds in their logits, and its gradient by h."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Head, target: Target) -> Tensor:
        rows = max(1, CHUNK_ENTRIES // head.weight.n_rows)
        gradient = torch.empty_like(states) if states.requires_grad else None
        total = torch.zeros((), dtype=torch.float64, device=states.device)
        for start in range(0, len(states), rows):
            part = slice(start, start + rows)
            logits = head.logits(states[part])
            slope = head.rule.slope(logits) if gradient is not None else 1.0
            apart, by_logits = target.apart(logits, part)
            total += apart
            if gradient is not None:
                gradient[part] = head.weight.back(by_logits.mul_(slope).to(states.dtype))
        ctx.gradient = gradient
        return total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None]:
        gradient = None if ctx.gradient is None else ctx.gradient.mul_(g.to(ctx.gradient.dtype))
        return gradient, None, None


def summed_loss(states: Tensor, head: Head, target: Target) -> Tensor:
    """Sum of what ``target`` finds after ``states`` [T, K], float32.

    Tokens that do not count are left out before, so that they never reach the head. The gradient by ``states`` may be asked for
    once.
    """
    loss: Tensor = _Summed.apply(states, head, target)  # type: ignore[no-untyped-call]
    return loss
