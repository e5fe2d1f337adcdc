"""The traffic of a linear module: its input, and the gradient at its output."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bitwright.errors import fail
from bitwright.models.spec import Weight
from bitwright.models.taps.base import Tap


class LinearTap(Tap):
    """A weight that is the ``weight`` of an nn.Linear or Conv1D. Linears that are given one tensor share it."""

    def __init__(self, weight: Weight, module: nn.Module) -> None:
        super().__init__(weight)
        self._module = module
        self._handle: RemovableHandle | None = None
        self._x: Tensor | None = None
        self._g: Tensor | None = None

    def attach(self) -> None:
        self._handle = self._module.register_forward_hook(self._note)

    def detach(self) -> None:
        if self._handle:
            self._handle.remove()

    def _note(self, _: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        self._x, self._g = args[0].detach(), None
        if out.requires_grad:
            out.register_hook(self._note_gradient)

    def _note_gradient(self, gradient: Tensor) -> None:
        self._g = gradient.detach()

    @property
    def is_complete(self) -> bool:
        """Whether the weight took part in the pass, and a gradient came back to it."""
        return self._x is not None and self._g is not None

    def take(self, samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, g, self._x, self._g = self._x, self._g, None, None
        if x is None or g is None:
            raise fail(
                "model/unused-weight",
                self.weight.name,
                saw="the block's forward pass does not use it",
                wanted="every weight of a block takes part",
                help="this architecture is not supported yet",
            )
        rows = samples.repeat_interleave(x.numel() // (x.shape[-1] * len(samples))).to(x.device, torch.long)
        return x.flatten(0, -2), g.flatten(0, -2), rows
