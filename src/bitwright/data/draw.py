"""Drawing tokens from distributions over a vocabulary (pure functions)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

DRAW_RUN = 256


def draw(logits: Float[Tensor, "T V"], uniform: Float[Tensor, "T 1"]) -> Int[Tensor, "T 1"]:
    """One index [T, 1] per row of ``logits`` [T, V], drawn from their softmax by inverting its distribution at ``uniform``."""
    wide = logits.float()
    return drawn_at((wide - wide.amax(1, keepdim=True)).exp_(), uniform)


def drawn_at(mass: Float[Tensor, "T V"], uniform: Float[Tensor, "T S"]) -> Int[Tensor, "T S"]:
    """Where the running sum of ``mass`` [T, V], none negative, reaches the shares ``uniform`` [T, S]: int64 [T, S].

    The cumulative sum is taken over runs of DRAW_RUN entries first and then inside the runs that are hit.
    """
    n_tokens, n_entries = mass.shape
    if n_entries % DRAW_RUN:
        mass = nn.functional.pad(mass, (0, -n_entries % DRAW_RUN))
    runs = mass.view(n_tokens, -1, DRAW_RUN)
    upto = runs.sum(-1).double().cumsum(-1)
    target = (uniform.double() * upto[:, -1:]).clamp_(min=torch.finfo(torch.float64).tiny)
    run = torch.searchsorted(upto, target).clamp_(max=upto.shape[1] - 1)
    inside = runs.gather(1, run[:, :, None].expand(-1, -1, DRAW_RUN)).double().cumsum(-1)
    before = upto.gather(1, run) - inside[:, :, -1]
    entry = torch.searchsorted(inside, (target - before)[:, :, None])[:, :, 0]
    first, last = ((inside <= 0).sum(-1), (inside < inside[:, :, -1:]).sum(-1))  # with any mass, lest rounding leads past them
    return run * DRAW_RUN + entry.maximum(first).minimum(last)
