"""The scale of each block that minimises the weighted squared error among the scales that storage can hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from bitwright.rounding.kernels.grid import Grid
from bitwright.rounding.kernels.trials import best_trial

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
    toward = torch.where(weight.amax(0) >= -weight.amin(0), absmax, -absmax)
    everywhere = importance.expand_as(weight)
    trials, values = snap(toward * _signed(ratios, grid.symmetric, weight.device))
    at, cost, fitted = best_trial(weight, everywhere, grid, values)
    stored, value = (found.gather(0, at[None])[0] for found in (trials, values))
    refit, refit_value = snap(fitted)
    better = best_trial(weight, everywhere, grid, refit_value[None])[1] < cost
    return torch.where(better, refit, stored), torch.where(better, refit_value, value)


@cache
def _signed(ratios: tuple[float, ...], one_sided: bool, device: torch.device) -> Tensor:
    """The ratios [T, 1], with both signs unless one is enough."""
    return torch.tensor(ratios if one_sided else (*ratios, *(-ratio for ratio in ratios)), device=device)[:, None]
