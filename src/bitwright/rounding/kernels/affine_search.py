"""The scale and minimum of each block that minimise the weighted squared error, for formats that store both."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float32
from torch import Tensor

from bitwright.rounding.kernels.grid import reciprocal

SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7)  # trial ranges, as shares of the block's range
_TINY = torch.finfo(torch.float32).tiny

Snap = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


def search_affine(
    weight: Float32[Tensor, "B R"],
    importance: Float32[
        Tensor,
        (
            B  # R
        ),
    ],
    top: int,
    snap: Snap,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Best storable (scale, minimum) per block: argmin sum_b importance_b (w_b - s q_b - m)^2 with q_b in 0..top.

    weight [B, R], one block per column; importance [B, 1] or [B, R]. ``snap`` maps wanted (s [R], m [R]) to what is stored
    and what that decodes to: (stored s, stored m, s, m), which is also what is returned. Each trial range gives codes;
    they give the least-squares line, and that is snapped and judged with the codes that it has then.
    """
    low, high = weight.amin(0), weight.amax(0)
    weights = importance.expand_as(weight)
    mass = weights.sum(0)
    mean = (weights * weight).sum(0) / mass.clamp(min=_TINY)
    best_cost: Tensor | None = None
    best: tuple[Tensor, ...] = ()

    def code(s: Tensor, m: Tensor) -> Tensor:
        return ((weight - m) * reciprocal(s)).round_().clamp_(0, top)

    def consider(wanted_s: Tensor, wanted_m: Tensor) -> None:
        nonlocal best_cost, best
        found = snap(wanted_s, wanted_m)
        s, m = found[2], found[3]
        cost = (code(s, m).mul_(s).add_(m).sub_(weight).square_() * weights).sum(0)
        if best_cost is None:
            best_cost, best = cost, found
            return
        better = cost < best_cost
        best_cost = torch.where(better, cost, best_cost)
        best = tuple(torch.where(better, new, old) for new, old in zip(found, best, strict=True))

    for share in SHRINK:
        middle = (low + high) / 2
        m = middle + (low - middle) * share
        s = (high - low) * share / top
        consider(s, m)
        q = code(s, m)
        q_mean = (weights * q).sum(0) / mass.clamp(min=_TINY)
        centred = weights * (q - q_mean)
        spread = (centred * q).sum(0)
        slope = torch.where(spread > 0, (centred * weight).sum(0) / spread.clamp(min=_TINY), s)
        consider(slope, mean - slope * q_mean)
        consider((weights * q * weight).sum(0) / (weights * q.square()).sum(0).clamp(min=_TINY), torch.zeros_like(m))
    assert len(best) == 4
    return best[0], best[1], best[2], best[3]
