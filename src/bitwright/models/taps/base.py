"""How the traffic of a weight is seen while its block runs forward and backward."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from bitwright.models.spec import Weight


class Tap(ABC):
    """Watches one weight from ``attach`` to ``detach``."""

    def __init__(self, weight: Weight) -> None:
        self.weight = weight

    @abstractmethod
    def attach(self) -> None:
        """Begin to watch."""

    @abstractmethod
    def detach(self) -> None:
        """Leave the model as it was."""

    @abstractmethod
    def take(self, samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs x [M, K], output gradients g [M, N] and samples [M] of the pass since ``attach``, which are let go.

        ``samples`` int64 [B]: the number of each sample of the batch. Raises BitwrightError when the weight took no part.
        """
