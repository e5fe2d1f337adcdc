"""What is kept from the forward to the backward pass lies in one block of memory of its own, used again in every step.

Kept states are smaller than what a layer needs for a moment, and live longer. Between them glibc's heap falls to pieces: it
holds three times what a step takes. If all large blocks were mappings of their own, asking for them would cost a quarter of the
time. The block can also take what a GPU has no room for: it is then memory that the GPU copies to and from by itself.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LEAST_NBYTES = 1 << 20  # of a state that is put there; below it the heap copes
GROWTH = 1.25  # of the block over what the last pass would have needed


class Arena:
    """Keeps saved tensors of a processor, and with ``offload`` those of a GPU; what finds no room stays where it is.

    >>> arena = Arena(); x = torch.randn(1024, 512, requires_grad=True)
    >>> for _ in range(2):
    ...     with arena.keeping(2 << 20):
    ...         y = (2 * x).square().sum()
    ...     y.backward()
    >>> arena.used
    2097152
    """

    def __init__(self, offload: bool = False) -> None:
        self.offload = offload
        self._block = torch.empty(0, dtype=torch.uint8)
        self.used = self._wanted = 0

    def keeping(self, nbytes: int = 0) -> AbstractContextManager[Any]:
        """Around one forward pass, whose backward pass has ended before the next one begins. ``nbytes``: what it may want."""
        if max(self._wanted, nbytes) > len(self._block):
            self._block = torch.empty(0, dtype=torch.uint8)  # goes before the larger one comes
            size = int(GROWTH * max(self._wanted, nbytes))
            self._block = torch.empty(size, dtype=torch.uint8, pin_memory=self.offload and torch.cuda.is_available())
        self.used = self._wanted = 0
        return torch.autograd.graph.saved_tensors_hooks(self._put, _got)

    def _put(self, tensor: Tensor) -> Tensor | _Away:
        nbytes = tensor.numel() * tensor.element_size()
        here = tensor.device.type == "cpu" or self.offload
        if not here or nbytes < LEAST_NBYTES or not tensor.is_contiguous() or tensor.is_leaf:
            return tensor
        self._wanted += nbytes
        if self.used + nbytes > len(self._block):
            return tensor
        place = self._block[self.used : self.used + nbytes].view(tensor.dtype).view(tensor.shape)
        self.used += nbytes
        place.copy_(tensor.detach(), non_blocking=True)  # in the order of the GPU's other work, so nothing is overtaken
        return place if tensor.device.type == "cpu" else _Away(place, tensor.device)


@dataclass(frozen=True)
class _Away:
    """A tensor that lies in the block, of another device."""

    place: Tensor
    device: torch.device


def _got(kept: Tensor | _Away) -> Tensor:
    return kept if isinstance(kept, Tensor) else kept.place.to(kept.device, non_blocking=True)
