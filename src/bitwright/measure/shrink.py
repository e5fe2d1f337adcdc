"""Less noisy damages: each weight's Fisher estimate is drawn towards what its moments and its role predict (no torch).

A Fisher estimate from S sequences has a relative error near sqrt(2 / S), enough to mislead the choice between formats
that differ by a quarter. The moment estimate tr(dW S dW^T) has little noise but misses how tokens and outputs correlate. Their
ratio varies slowly within a role, so it is estimated by empirical Bayes (Efron and Morris 1973) on the log scale:
the ratio of a weight is its own estimate and its role's mean, weighted by the inverse of their variances.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log


@dataclass(frozen=True)
class Observation:
    """One weight in one format. ``fisher`` with its standard error, and ``moment`` on any scale; all in nats per token."""

    fisher: float
    stderr: float
    moment: float


def shrink(weights: Sequence[Sequence[Observation]], roles: Sequence[str]) -> list[list[tuple[float, float]]]:
    """(damage, standard error) for every format of every weight; the formats of one weight share one ratio.

    A weight whose estimates are zero, or without formats, is returned as it is.
    """
    observed: dict[int, tuple[float, float]] = {}
    for i, estimates in enumerate(weights):
        moment, fisher = sum(e.moment for e in estimates), sum(e.fisher for e in estimates)
        if moment > 0 and fisher > 0:
            noise = sum(e.stderr for e in estimates) / fisher / max(1, len(estimates)) ** 0.5
            observed[i] = (log(fisher / moment), noise**2)
    by_role: dict[str, list[int]] = defaultdict(list)
    for i in observed:
        by_role[roles[i]].append(i)
    damages = [[(e.fisher, e.stderr) for e in estimates] for estimates in weights]
    for members in by_role.values():
        mean = sum(observed[i][0] for i in members) / len(members)
        spread = sum((observed[i][0] - mean) ** 2 for i in members) / max(1, len(members) - 1)
        between = max(spread - sum(observed[i][1] for i in members) / len(members), 0.0)
        for i in members:
            ratio, noise = observed[i]
            trust = between / (between + noise) if len(members) > 2 and noise > 0 else 1.0
            kappa = exp(trust * ratio + (1 - trust) * mean)
            error = (trust * noise) ** 0.5
            damages[i] = [(kappa * e.moment, kappa * e.moment * error) for e in weights[i]]
    return damages
