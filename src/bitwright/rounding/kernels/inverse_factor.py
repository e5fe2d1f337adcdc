"""The triangular factor that error feedback runs on, computed in the place of the matrix it is made from."""

from __future__ import annotations

import torch
from jaxtyping import Float32
from torch import Tensor

PANEL = 256  # columns worked on at once; what lies beside the panel moves in products of matrices


def upper_factor(moment: Float32[Tensor, "K K"]) -> Float32[Tensor, "K K"] | None:
    """R upper triangular with S = R R^T for S = ``moment`` float32 [K, K], which is overwritten.

    What lies below the diagonal stays there and means nothing. None where S is not positive definite in float32. Panel by panel
    from the far corner (blocked algorithm: Golub and Van Loan, Matrix Computations, 4.2). Beside S only strips of K x PANEL
    are needed: a second moment is the largest thing in memory.
    """
    panels = _panels(len(moment))
    for panel in reversed(panels):
        before = slice(0, panel.start)
        lower, failed = torch.linalg.cholesky_ex(moment[panel, panel].flip(0, 1))
        if int(failed):
            return None
        corner = lower.flip(0, 1)
        moment[panel, panel] = corner
        strip = torch.linalg.solve_triangular(corner.t(), moment[before, panel], upper=False, left=False)
        moment[before, panel] = strip
        for rows in panels[: panels.index(panel)]:  # R R^T of this panel leaves what is left to factor, above the diagonal
            moment[rows, rows.start : panel.start].addmm_(strip[rows], strip[rows.start :].t(), alpha=-1)
    return moment


def inverse_factor(moment: Float32[Tensor, "K K"]) -> Float32[Tensor, "K K"] | None:
    """U upper triangular with inv(S) = U^T U for S = ``moment`` float32 [K, K], which is overwritten and holds U at the end.

    None where S is not positive definite in float32. S = R R^T, then U = inv(R) panel by panel from the near corner (Golub and
    Van Loan, 3.1).
    """
    if upper_factor(moment) is None:
        return None
    panels = _panels(len(moment))
    for panel in panels:
        before = slice(0, panel.start)
        size = panel.stop - panel.start
        corner = torch.linalg.solve_triangular(moment[panel, panel], torch.eye(size, device=moment.device), upper=True)
        strip = moment[before, panel] @ corner
        for rows in panels[: panels.index(panel)]:  # U of the earlier panels is upper triangular: skip what is below
            moment[rows, panel] = (moment[rows, rows.start : panel.start] @ strip[rows.start :]).neg_()
        moment[panel, panel] = corner
    moment.triu_()
    return moment if bool(torch.isfinite(moment.diagonal()).all()) else None


def _panels(size: int) -> list[slice]:
    return [slice(start, min(start + PANEL, size)) for start in range(0, size, PANEL)]
