"""Second moments of what a weight is given, gathered batch by batch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

WIDE = 2.0  # outputs to an input: rows of wider weights gained nothing by taking notice of each other (docs/LOG.md)
STRIP = 512  # rows of a moment that are added to at once


def rows_may_share(n_rows: int, n_cols: int) -> bool:
    """Whether the second moment of the output gradients of a weight [N, K] is worth its N x N numbers."""
    return n_rows <= WIDE * n_cols


class SecondMoment:
    """The sum over tokens of w_t x_t x_t^T, float32 [K, K].

    Products are taken in float32 whatever type the inputs have: a sum whose parts were rounded to 16 bits is no sum of squares
    any more, and with columns of unlike size it cannot be factored. The matrix is symmetric, so only the part on and above its
    diagonal is computed.
    """

    def __init__(self, n_cols: int, device: torch.device) -> None:
        self._sum = torch.zeros(n_cols, n_cols, device=device)

    def add(self, inputs: Float[Tensor, "T K"], weights: Float[Tensor, " T"] | None = None) -> None:
        """Take T tokens into account, each as much as its weight says; without weights all alike.

        Weights are scaled to mean one before their root is taken, so that none of them underflows.
        """
        rows, mean = inputs.float(), 1.0
        if weights is not None:
            mean = float(weights.mean().clamp(min=torch.finfo(torch.float32).tiny))
            rows = rows * (weights / mean).sqrt()[:, None]
        for start in range(0, len(self._sum), STRIP):
            strip = slice(start, start + STRIP)
            self._sum[strip, start:].addmm_(rows[:, strip].t(), rows[:, start:], alpha=mean)

    def take(self) -> Float[Tensor, "K K"]:
        """The whole matrix; nothing may be added afterwards."""
        for start in range(0, len(self._sum), STRIP):
            stop = start + STRIP
            self._sum[stop:, start:stop] = self._sum[start:stop, stop:].t()
        return self._sum
