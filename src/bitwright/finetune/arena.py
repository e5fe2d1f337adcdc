"""What is kept from the forward to the backward pass lies in one block of memory of its own, used again in every step.

Kept states are smaller than what a layer needs for a moment, and live longer. Between them glibc's heap falls to pieces: it
holds three times what a step takes. If all large blocks were mappings of their own, asking for them would cost a quarter of the
time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

LEAST_NBYTES = 1 << 20  # of a state that is put there; below it the heap copes
GROWTH = 1.25  # of the block over what the last pass would have needed


class Arena:
    """Keeps saved tensors of a processor; those that find no room, and those of other devices, stay where they are.

    >>> arena = Arena(); x = torch.randn(1024, 512, requires_grad=True)
    >>> for _ in range(2):
    ...     with arena.keeping(2 << 20):
    ...         y = (2 * x).square().sum()
    ...     y.backward()
    >>> arena.used
    2097152
    """

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)
        self.used = self._wanted = 0

    def keeping(self, nbytes: int = 0) -> AbstractContextManager[Any]:
        """Around one forward pass, whose backward pass has ended before the next one begins. ``nbytes``: what it may want."""
        if max(self._wanted, nbytes) > len(self._block):
            self._block = torch.empty(0, dtype=torch.uint8)  # goes before the larger one comes
            self._block = torch.empty(int(GROWTH * max(self._wanted, nbytes)), dtype=torch.uint8)
        self.used = self._wanted = 0
        return torch.autograd.graph.saved_tensors_hooks(self._put, lambda kept: kept)

    def _put(self, tensor: Tensor) -> Tensor:
        nbytes = tensor.numel() * tensor.element_size()
        if tensor.device.type != "cpu" or nbytes < LEAST_NBYTES or not tensor.is_contiguous() or tensor.is_leaf:
            return tensor
        self._wanted += nbytes
        if self.used + nbytes > len(self._block):
            return tensor
        place = self._block[self.used : self.used + nbytes].view(tensor.dtype).view(tensor.shape)
        self.used += nbytes
        return place.copy_(tensor.detach())
