"""Error feedback between rows: what a change does to one output, later outputs make good (YAQA, arXiv 2505.22988).

The cost of a change dW is nearly tr(G dW S dW^T), S being the second moment of the inputs and G that of the output gradients.
Where outputs reach the rest of the model together, as queries, keys and what is added to the residual stream do, G is far from
diagonal, and error feedback over columns leaves that alone. Here the rows are rounded in parts: once a part is done, the best
that all later rows can do about its errors is to move by -inv(G_ff) G_fp dW_p, whatever S is, and they are rounded from there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from bitwright.rounding.kernels.damping import Unseen, choose_damping
from bitwright.rounding.kernels.inverse_factor import inverse_factor

PARTS = 8  # rows of one part take no notice of each other, which leaves an eighth of the gain
WORTH = 0.95  # of the expected error without: less gain is not to be told from none on 1,024 tokens


@dataclass(frozen=True)
class RowFeedback:
    """The order of the rows, and how an error in one is absorbed by later ones: inv(G) = U^T U with U upper triangular."""

    order: Int64[Tensor, " N"]  # every PARTS-th row is of one part: neighbours, as the rows of a head, are in different ones
    factor: Float32[Tensor, "N N"]  # U, rows and columns in this order

    @classmethod
    def of(cls, moment: Float32[Tensor, "N N"], unseen: Unseen) -> RowFeedback | None:
        """From G = ``moment``, a sum of g g^T, which is scaled in its place; None where it would gain nothing.

        ``unseen``: gradients that G is not made of. They tell how much damping it needs, and what it is worth.
        """
        moment /= moment.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
        damping, error = choose_damping(moment, unseen)
        without = float((unseen.x.float().square().sum(1) * unseen.weights).mean())
        if not error < WORTH * without:
            return None
        order = interleaved(len(moment), moment.device)
        factor = moment[order][:, order]
        factor.diagonal().add_(damping)
        upper = inverse_factor(factor)
        return None if upper is None else cls(order, upper)

    @property
    def parts(self) -> list[tuple[slice, slice]]:
        """The parts, each as a range of ``order`` and as rows of the weight."""
        found, start = [], 0
        for first in range(min(PARTS, len(self.order))):
            stop = start + len(range(first, len(self.order), PARTS))
            found.append((slice(start, stop), slice(first, None, PARTS)))
            start = stop
        return found

    def absorb(self, target: Float32[Tensor, "N K"], part: slice, decoded: Float32[Tensor, "P K"]) -> None:
        """Move the rows of ``target`` (in this order) behind ``part`` so that they make good what it became."""
        error = torch.linalg.solve_triangular(self.factor[part, part].t(), target[part] - decoded, upper=False)
        target[part.stop :].addmm_(self.factor[part, part.stop :].t(), error, alpha=-1)


def interleaved(n_rows: int, device: torch.device | None = None) -> Int64[Tensor, " N"]:
    """Rows 0, PARTS, 2 PARTS ..., then 1, PARTS + 1 ..."""
    rows = torch.arange(n_rows, device=device)
    return torch.cat([rows[first::PARTS] for first in range(PARTS)])
