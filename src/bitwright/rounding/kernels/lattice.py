"""The numbers that a weight can be once its scales are known, and training through the step to the nearest of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from torch.autograd.function import once_differentiable

from bitwright.rounding.kernels.grid import Grid, TableGrid, UniformGrid, reciprocal


@dataclass(frozen=True, eq=False)
class Lattice:
    """scale * level + minimum: one scale, and in some formats one minimum, for each ``size`` columns of a row [N, K]."""

    grid: Grid
    size: int
    scale: Tensor  # float32 [N, G], what level 1 of the grid decodes to
    minimum: Tensor | None = None  # float32 [N, G]

    @property
    def spacing(self) -> float:
        """Mean distance between two neighbouring levels."""
        if isinstance(self.grid, UniformGrid):
            return 1 / self.grid.unit
        assert isinstance(self.grid, TableGrid)
        return float(self.grid.levels[-1] - self.grid.levels[0]) / max(1, len(self.grid.levels) - 1)

    @property
    def bounds(self) -> tuple[float, float]:
        """The outermost levels."""
        levels = self.levels_by_code(self.scale.device)
        return float(levels.min()), float(levels.max())

    def steps_of(self, weight: Float[Tensor, "N K"]) -> Float32[Tensor, "N K"]:
        """``weight`` in units of ``spacing``, zero where a scale is zero."""
        grouped = weight.float().reshape(*self.scale.shape, self.size)
        if self.minimum is not None:
            grouped = grouped - self.minimum[:, :, None]
        return (grouped * reciprocal(self.scale * self.spacing)[:, :, None]).reshape(weight.shape)

    def codes_of(self, steps: Float32[Tensor, "N K"]) -> UInt8[Tensor, "N K"]:
        """Codes of the levels nearest to ``steps``."""
        return self.grid.code(self.grid.cell(steps * self.spacing))

    def within(self, steps: Float32[Tensor, "N K"], code: UInt8[Tensor, "N K"]) -> Float32[Tensor, "N K"]:
        """``steps`` where their nearest level is that of ``code``, and that level itself elsewhere."""
        levels = self.levels_by_code(steps.device)[code.int()] / self.spacing
        return torch.where(self.codes_of(steps) == code, steps, levels)

    def levels_by_code(self, device: torch.device) -> Tensor:
        """The level of each code, float32."""
        if isinstance(self.grid, UniformGrid):
            return (torch.arange(self.grid.count, device=device) + self.grid.first).float() / self.grid.unit
        assert isinstance(self.grid, TableGrid)
        found = torch.zeros(int(self.grid.code_of_level.max()) + 1, device=device)
        found[self.grid.code_of_level.int()] = self.grid.levels.to(device)
        return found


def snap(lattice: Lattice, steps: Tensor, scale: Tensor, minimum: Tensor | None) -> Tensor:
    """Weights [N, K] under ``scale`` and ``minimum``, the levels being those nearest to ``steps``.

    Straight through (arXiv 1308.3432): the gradient passes the step to a level as if it were not there, but for what lies
    beyond the outermost levels. Scales and minima get the gradient of the levels as they are.
    """
    found: Tensor = _Snap.apply(lattice, steps, scale, minimum)  # type: ignore[no-untyped-call]
    return found


class _Snap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lattice: Lattice, steps: Tensor, scale: Tensor, minimum: Tensor | None) -> Tensor:
        grid, spacing = lattice.grid, lattice.spacing
        level = grid.level(grid.cell(steps * spacing))
        if ctx.needs_input_grad[1]:
            low, high = (bound / spacing for bound in lattice.bounds)
            ctx.far = (steps < low - 0.5) | (steps > high + 0.5)
        ctx.spacing = spacing
        level = level.reshape(*scale.shape, lattice.size)
        ctx.save_for_backward(level, scale)
        value = level * scale[:, :, None]
        if minimum is not None:
            value += minimum[:, :, None]
        return value.reshape(steps.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor | None, Tensor | None, Tensor | None]:
        level, scale = ctx.saved_tensors
        grouped = g.reshape(level.shape)
        by_steps = by_scale = by_minimum = None
        if ctx.needs_input_grad[2]:
            by_scale = torch.einsum("ngk,ngk->ng", grouped, level)
        if ctx.needs_input_grad[3]:
            by_minimum = grouped.sum(2)
        if ctx.needs_input_grad[1]:
            by_steps = (grouped * (scale * ctx.spacing)[:, :, None]).reshape(g.shape).masked_fill_(ctx.far, 0.0)
        return None, by_steps, by_scale, by_minimum
