"""How far a second moment can be trusted: the damping under which error feedback does best on tokens that it has not seen.

A moment that is estimated from few tokens, or from one kind of text, promises more than it keeps: error feedback pushes errors
to where the text at hand does not look. Damping, a share of the mean diagonal added to the diagonal (ridge), holds it back, and
how much is right depends on the weight: on its width, on how few tokens carry the gradient, on how alike texts are to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from bitwright.rounding.kernels.inverse_factor import upper_factor

DAMPINGS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
FIRST = 0.3  # where the search starts; the expected error has one minimum
SLACK = 1.02  # of the least expected error: the strongest damping within it is taken, since unseen text is stranger still


@dataclass(frozen=True)
class Unseen:
    """Tokens that a second moment is not made of: what a weight was given there, and how much each counts, on average one."""

    x: Float[Tensor, "M K"]
    weights: Float[Tensor, " M"]


def expected_error(damped: Float32[Tensor, "K K"], unseen: Unseen) -> float:
    """What error feedback under ``damped``, which is overwritten, costs on the unseen tokens if single errors have size one.

    Feedback leaves dW = -e D inv(R) with S = R R^T, D the diagonal of R, and e the errors of single roundings, which are white.
    So E |dW x|^2 is |D inv(R) x|^2, and no weight has to be rounded. Infinite where S cannot be factored.
    """
    factor = upper_factor(damped)
    if factor is None:
        return float("inf")
    scaled = unseen.x.float() * unseen.weights.sqrt()[:, None]
    left = torch.linalg.solve_triangular(factor, scaled.t(), upper=True)
    return float((left * factor.diagonal()[:, None]).square().sum()) / len(scaled)


def choose_damping(moment: Float32[Tensor, "K K"], unseen: Unseen) -> tuple[float, float]:
    """The strongest of DAMPINGS whose expected error on ``unseen`` is the least but for SLACK, and that error.

    ``moment`` has a mean diagonal of one.
    """
    errors: dict[int, float] = {}

    def error(at: int) -> float:
        if at not in errors:
            damped = moment.clone()
            damped.diagonal().add_(DAMPINGS[at])
            errors[at] = expected_error(damped, unseen)
        return errors[at]

    best = DAMPINGS.index(FIRST)
    while best + 1 < len(DAMPINGS) and error(best + 1) <= error(best):
        best += 1
    while best > 0 and error(best - 1) < error(best):
        best -= 1
    while best + 1 < len(DAMPINGS) and error(best + 1) <= SLACK * min(errors.values()):
        best += 1
    return DAMPINGS[best], error(best)
