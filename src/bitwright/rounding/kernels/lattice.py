"""The numbers that a weight can be once its scales are known, and training through the step to the nearest of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor
from torch.autograd.function import once_differentiable

from bitwright.formats.iq.codes import CodebookCodes
from bitwright.formats.iq.format import DELTA, SIGNED
from bitwright.rounding.kernels.codebook import Choice, Codebook
from bitwright.rounding.kernels.grid import Grid, TableGrid, UniformGrid, reciprocal


@dataclass(frozen=True, eq=False)
class Lattice(ABC):
    """scale * level + minimum: one scale, and in some formats one minimum, for each ``size`` columns of a row [N, K]."""

    together: ClassVar[int] = 1  # weights of a row whose levels are chosen together
    size: int
    scale: Tensor  # float32 [N, G], what level 1 decodes to
    minimum: Tensor | None  # float32 [N, G]

    @property
    @abstractmethod
    def spacing(self) -> float:
        """Mean distance between two neighbouring levels."""

    @property
    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """The outermost levels."""

    @abstractmethod
    def levels(self, steps: Float32[Tensor, "N K"]) -> Float32[Tensor, "N K"]:
        """The levels nearest to ``steps``."""

    @abstractmethod
    def levels_of(self, codes: Any) -> Float32[Tensor, "N K"]:
        """The levels that ``codes`` stand for."""

    @abstractmethod
    def codes_of(self, steps: Float32[Tensor, "N K"]) -> Mapping[str, Tensor]:
        """What codes of the levels nearest to ``steps`` hold, by name, in the order of the weights."""

    def steps_of(self, weight: Float[Tensor, "N K"]) -> Float32[Tensor, "N K"]:
        """``weight`` in units of ``spacing``, zero where a scale is zero."""
        grouped = weight.float().reshape(*self.scale.shape, self.size)
        if self.minimum is not None:
            grouped = grouped - self.minimum[:, :, None]
        return (grouped * reciprocal(self.scale * self.spacing)[:, :, None]).reshape(weight.shape)

    def begun(self, weight: Float[Tensor, "N K"], codes: Any) -> Float32[Tensor, "N K"]:
        """Steps whose nearest levels are those of ``codes``: those of ``weight`` where they are, elsewhere these levels."""
        steps, levels = self.steps_of(weight), self.levels_of(codes)
        same = (self.levels(steps) == levels).reshape(len(steps), -1, self.together).all(2)
        return torch.where(same.repeat_interleave(self.together, 1), steps, levels / self.spacing)

    def beyond(self, steps: Float32[Tensor, "N K"]) -> Bool[Tensor, "N K"]:
        """Where ``steps`` are more than half a spacing beyond the outermost levels."""
        low, high = (bound / self.spacing for bound in self.bounds)
        return (steps < low - 0.5) | (steps > high + 0.5)


@dataclass(frozen=True, eq=False)
class ScalarLattice(Lattice):
    """Every weight has a level of its own."""

    grid: Grid

    @property
    def spacing(self) -> float:
        if isinstance(self.grid, UniformGrid):
            return 1 / self.grid.unit
        assert isinstance(self.grid, TableGrid)
        return float(self.grid.levels[-1] - self.grid.levels[0]) / max(1, len(self.grid.levels) - 1)

    @property
    def bounds(self) -> tuple[float, float]:
        levels = self.levels_by_code(self.scale.device)
        return float(levels.min()), float(levels.max())

    def levels(self, steps: Tensor) -> Tensor:
        return self.grid.level(self.grid.cell(steps * self.spacing))

    def levels_of(self, codes: Any) -> Tensor:
        return self.levels_by_code(codes.code.device)[codes.code.int()].reshape(codes.shape)

    def codes_of(self, steps: Tensor) -> Mapping[str, Tensor]:
        return {"code": self.grid.code(self.grid.cell(steps * self.spacing))}

    def levels_by_code(self, device: torch.device) -> Tensor:
        """The level of each code, float32."""
        if isinstance(self.grid, UniformGrid):
            return self.grid.level(torch.arange(self.grid.count, device=device).float())
        assert isinstance(self.grid, TableGrid)
        found = torch.zeros(int(self.grid.code_of_level.max()) + 1, device=device)
        found[self.grid.code_of_level.int()] = self.grid.levels.to(device)
        return found


@dataclass(frozen=True, eq=False)
class CodebookLattice(Lattice):
    """Eight weights of a row are an entry, or two, of a table. ``shift`` bool [N, G]: the sign of each block's shift, where a
    block has one; it stays as it is."""

    together: ClassVar[int] = SIGNED
    codebook: Codebook
    shift: Tensor | None

    @property
    def spacing(self) -> float:
        return self.codebook.spacing

    @property
    def bounds(self) -> tuple[float, float]:
        return -self.codebook.largest, self.codebook.largest

    def levels(self, steps: Tensor) -> Tensor:
        return self._choice(steps).value.t().reshape(steps.shape)

    def levels_of(self, codes: CodebookCodes) -> Tensor:
        levels = self.codebook.table.index_select(0, codes.entry.int()).reshape(-1, SIGNED)
        if codes.format.signs == "none":
            shifts = torch.where(codes.sign, -DELTA, DELTA).repeat_interleave(codes.format.shifted // SIGNED)
            return (levels + shifts[:, None]).reshape(codes.shape)
        return levels.reshape(codes.shape) * torch.where(codes.sign, -1.0, 1.0).reshape(codes.shape)

    def codes_of(self, steps: Tensor) -> Mapping[str, Tensor]:
        found = self._choice(steps)
        entry = found.entry.t().reshape(-1).to(torch.int16)
        return {"entry": entry} if self.shift is not None else {"entry": entry, "sign": found.sign.t().reshape(-1)}

    def _choice(self, steps: Tensor) -> Choice:
        eights = (steps * self.spacing).reshape(-1, SIGNED).t()
        shift = None if self.shift is None else self.shift.reshape(-1).repeat_interleave(self.size // SIGNED)
        return self.codebook.choose(eights, torch.ones(SIGNED, device=steps.device), shift)


def snap(lattice: Lattice, steps: Tensor, scale: Tensor, minimum: Tensor | None) -> Tensor:
    """Weights [N, K] under ``scale`` and ``minimum``, the levels being those nearest to ``steps``.

    Straight through (arXiv 1308.3432): the gradient passes the step to a level as if it were not there, but for what lies
    beyond the outermost levels. Scales and minima get the gradient of the levels as they are.
    """
    found: Tensor = _Snap.apply(lattice, steps, scale, minimum)  # type: ignore[no-untyped-call]
    return found


def decoded(lattice: Lattice, levels: Tensor, scale: Tensor, minimum: Tensor | None) -> Tensor:
    """Weights [N, K] of ``levels`` [N, K] under ``scale`` and ``minimum`` [N, G]."""
    value = levels.reshape(*scale.shape, lattice.size) * scale[:, :, None]
    return (value if minimum is None else value + minimum[:, :, None]).reshape(levels.shape)


class _Snap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lattice: Lattice, steps: Tensor, scale: Tensor, minimum: Tensor | None) -> Tensor:
        levels = lattice.levels(steps)
        if ctx.needs_input_grad[1]:
            ctx.far = lattice.beyond(steps)
        ctx.spacing = lattice.spacing
        ctx.save_for_backward(levels, scale)
        return decoded(lattice, levels, scale, minimum)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor | None, Tensor | None, Tensor | None]:
        levels, scale = ctx.saved_tensors
        grouped = g.reshape(*scale.shape, -1)
        by_steps = by_scale = by_minimum = None
        if ctx.needs_input_grad[2]:
            by_scale = torch.einsum("ngk,ngk->ng", grouped, levels.reshape(grouped.shape))
        if ctx.needs_input_grad[3]:
            by_minimum = grouped.sum(2)
        if ctx.needs_input_grad[1]:
            by_steps = (grouped * (scale * ctx.spacing)[:, :, None]).reshape(g.shape).masked_fill_(ctx.far, 0.0)
        return None, by_steps, by_scale, by_minimum
