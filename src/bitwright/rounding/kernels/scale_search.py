"""The scale of each block that minimises the weighted squared error among the scales that storage can hold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from bitwright.rounding.kernels.grid import Grid, reciprocal

# Ratios of the trial scale to the block's largest magnitude. Measured on SmolLM2-135M (docs/LOG.md, scale search).
RATIOS = (1.06, 1.0, 0.94, 0.88, 0.82, 0.76, 0.7)

CHUNK_ENTRIES = (1 << 18, 1 << 24)  # weights times trials at once: in the cache of a processor, all of them on a GPU

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
    toward = torch.where(weight.amax(0) >= -weight.amin(0), absmax, -absmax)
    signs = (1.0,) if grid.symmetric else (1.0, -1.0)
    trials = [toward * (sign * ratio) for sign in signs for ratio in ratios]
    best = _Best(weight, importance, grid, snap)
    at_once = max(1, CHUNK_ENTRIES[weight.device.type == "cuda"] // weight.numel())
    for first in range(0, len(trials), at_once):
        best.consider(torch.stack(trials[first : first + at_once]))
    level = grid.level(grid.cell(weight * reciprocal(best.value)))
    norm = (importance * level.square()).sum(0)
    best.consider(torch.where(norm > 0, (importance * weight * level).sum(0) / norm.clamp(min=1e-38), best.value)[None])
    return best.stored, best.value


class _Best:
    """The best scale of each row so far."""

    cost: Tensor | None = None
    stored: Tensor
    value: Tensor

    def __init__(self, weight: Tensor, importance: Tensor, grid: Grid, snap: Snap) -> None:
        self.weight, self.importance, self.grid, self.snap = weight, importance, grid, snap

    def consider(self, wanted: Tensor) -> None:
        """Try scales [T, R], T of them for each row."""
        stored, value = self.snap(wanted)
        decoded = self.grid.level(self.grid.cell(self.weight * reciprocal(value)[:, None])).mul_(value[:, None])
        costs = decoded.sub_(self.weight).square_().mul_(self.importance).sum(1)
        cost, at = costs.min(0, keepdim=True)
        cost, stored, value = cost[0], stored.gather(0, at)[0], value.gather(0, at)[0]
        if self.cost is not None:
            better = cost < self.cost
            cost = torch.where(better, cost, self.cost)
            stored, value = torch.where(better, stored, self.stored), torch.where(better, value, self.value)
        self.cost, self.stored, self.value = cost, stored, value
