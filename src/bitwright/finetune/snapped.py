"""A linear layer whose weight is, in every pass, what its file will hold: quantization-aware training.

The weight that is trained lies between the levels of its format; what multiplies is the nearest level, and the gradient passes
the step between them as if it were not there. Scales and minima can be trained too, as storage holds them. What is trained is
therefore what is written, code for code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bitwright.formats.base import Packed
from bitwright.formats.families import unpacked
from bitwright.rounding.base import Rounder
from bitwright.rounding.kernels.lattice import decoded, snap

RATES = {"scale_change": 0.3, "minimum_change": 0.3}  # learning rates of these parameters, over that of all others


class SnappedLinear(nn.Module):
    """y = x W^T + b with W [N, K] on the lattice of ``packed``, whose codes it begins with.

    ``source`` [N, K]: the 16-bit weight; where its nearest level is the one that calibration chose, training begins at the
    weight itself, elsewhere at that level. ``rank`` > 0 trains a low-rank change of the weight instead of all of it.
    Without ``source`` the levels stay, and scales and minima alone are trained.
    """

    def __init__(
        self,
        packed: Packed,
        rounder: Rounder,
        source: Tensor | None,
        bias: Tensor | None = None,
        rank: int = 0,
        alpha: float = 16.0,
    ) -> None:
        super().__init__()
        self.codes, self.rounder = unpacked(packed), rounder
        self.lattice = lattice = rounder.lattice(self.codes)
        self.out_features, self.in_features = packed.shape
        self.register_buffer("bias", bias, persistent=False)
        self.bias: Tensor | None
        self.register_buffer("steps", None, persistent=False)
        self.steps: Tensor | None
        self.lora_a: nn.Parameter | None = None
        self.lora_b: nn.Parameter | None = None
        if source is not None:
            self._train_levels(lattice.begun(source, self.codes), rank, alpha)
        self.scale_change = nn.Parameter(torch.zeros_like(lattice.scale))  # relative
        self.minimum_change: nn.Parameter | None = None  # in units of a step
        if lattice.minimum is not None:
            self.minimum_change = nn.Parameter(torch.zeros_like(lattice.minimum))

    def _train_levels(self, begun: Tensor, rank: int, alpha: float) -> None:
        if rank:
            self.register_buffer("steps", begun, persistent=False)
            self.lora_a = nn.Parameter(torch.empty(rank, self.in_features))
            self.lora_b = nn.Parameter(torch.zeros(self.out_features, rank))
            nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
            self.strength = alpha / rank
        else:
            self.steps = nn.Parameter(begun)

    def forward(self, x: Tensor) -> Tensor:
        """y [..., N] of ``x`` [..., K], in the type of ``x``."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.weight.to(x.dtype), bias)

    @property
    def weight(self) -> Tensor:
        """What multiplies, float32 [N, K]."""
        scale, minimum = self._scales()
        if self.steps is None:
            return decoded(self.lattice, self.lattice.levels_of(self.codes), scale, minimum)
        return snap(self.lattice, self._steps(self.steps), scale, minimum)

    def packed(self) -> Packed:
        """The same as a file keeps it."""
        with torch.no_grad():
            scale, minimum = self._wanted()
            codes = self.rounder.rescaled(self.codes, scale, minimum)
            if self.steps is not None:
                codes = self.rounder.recoded(codes, self.lattice.codes_of(self._steps(self.steps)))
            return Packed.of(codes)

    def _steps(self, begun: Tensor) -> Tensor:
        if self.lora_a is None or self.lora_b is None:
            return begun
        change = (self.lora_b @ self.lora_a).reshape(*self.lattice.scale.shape, -1)
        unit = self.lattice.scale * self.lattice.spacing
        in_steps = change * torch.where(unit == 0, 0.0, self.strength / unit)[:, :, None]
        return begun + in_steps.reshape(begun.shape)

    def _wanted(self) -> tuple[Tensor, Tensor | None]:
        """Scales and minima as they are trained, between what storage holds."""
        scale = self.lattice.scale * (1 + self.scale_change)
        if self.lattice.minimum is None or self.minimum_change is None:
            return scale, None
        return scale, self.lattice.minimum + self.minimum_change * (self.lattice.scale * self.lattice.spacing)

    def _scales(self) -> tuple[Tensor, Tensor | None]:
        """The same as storage holds them, straight through."""
        scale, minimum = self._wanted()
        with torch.no_grad():
            stored = self.rounder.lattice(self.rounder.rescaled(self.codes, scale, minimum))
        scale = scale + (stored.scale - scale).detach()
        if minimum is not None and stored.minimum is not None:
            minimum = minimum + (stored.minimum - minimum).detach()
        return scale, minimum
