"""The scale of each block that minimises the weighted squared error among the scales that storage can hold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from bitwright.rounding.kernels.grid import Grid, reciprocal

# Ratios of the trial scale to the block's largest magnitude. Measured on SmolLM2-135M (docs/LOG.md, scale search).
RATIOS = (1.06, 1.0, 0.94, 0.88, 0.82, 0.76, 0.7)

Snap = Callable[[Tensor], tuple[Tensor, Tensor]]


def search_scale(
    weight: Float32[Tensor, "B R"],
    importance: Float32[
        Tensor,
        (
            B  # R
        ),
    ],
    grid: Grid,
    snap: Snap,
    ratios: tuple[float, ...] = RATIOS,
) -> tuple[Shaped[Tensor, " R"], Float32[Tensor, " R"]]:
    """Best storable scale per row: argmin over trial scales s of sum_b importance_b (w_b - s level(w_b / s))^2.

    weight [B, R] (one block per column R), importance [B, 1] or [B, R]. ``snap`` maps wanted scales [R] to
    (stored, value). Grids that are not symmetric are tried with both signs of the scale, and the winner gets one
    weighted least-squares refit. Returns (stored [R], value [R]).
    """
    absmax = weight.abs().amax(0)
    positive = weight.amax(0) >= -weight.amin(0)
    best_cost: Tensor | None = None
    best: tuple[Tensor, Tensor] = (absmax, absmax)

    def consider(wanted: Tensor) -> None:
        nonlocal best_cost, best
        stored, value = snap(wanted)
        decoded = grid.level(grid.cell(weight * reciprocal(value))).mul_(value)
        cost = decoded.sub_(weight).square_().mul_(importance).sum(0)
        if best_cost is None:
            best_cost, best = cost, (stored, value)
            return
        better = cost < best_cost
        best_cost = torch.where(better, cost, best_cost)
        best = (torch.where(better, stored, best[0]), torch.where(better, value, best[1]))

    signs = (1.0,) if grid.symmetric else (1.0, -1.0)
    toward = torch.where(positive, absmax, -absmax)
    for sign in signs:
        for ratio in ratios:
            consider(toward * (sign * ratio))
    level = grid.level(grid.cell(weight * reciprocal(best[1])))
    norm = (importance * level.square()).sum(0)
    consider(torch.where(norm > 0, (importance * weight * level).sum(0) / norm.clamp(min=1e-38), best[1]))
    return best
