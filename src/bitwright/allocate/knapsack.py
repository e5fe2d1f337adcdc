"""The multiple-choice knapsack, solved to optimality: one option per group, least damage within the budget.

Sinha and Zoltners, Operations Research 27 (1979); solved as a mixed-integer program by HiGHS through scipy.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from bitwright.host.quiet import no_words_of_c


@dataclass(frozen=True)
class Option:
    """One way to store a group of weights."""

    nbytes: int
    damage: float


@dataclass(frozen=True)
class Solution:
    """The chosen option of each group, its totals, and how far from the best possible it can be."""

    choice: tuple[int, ...]
    nbytes: int
    damage: float
    bound: float  # no choice within the budget has less damage than this

    @property
    def gap(self) -> float:
        """(damage - bound) / damage; 0 when optimality is proven."""
        return min(1.0, max(0.0, (self.damage - self.bound) / self.damage)) if self.damage > 0 else 0.0


def solve(groups: list[list[Option]], budget_nbytes: int, seconds: float = 20.0) -> Solution | None:
    """Least total damage with total bytes <= ``budget_nbytes``; None when even the smallest options exceed it."""
    if sum(min(o.nbytes for o in group) for group in groups) > budget_nbytes:
        return None
    options = [(g, o) for g, group in enumerate(groups) for o in efficient(group)]
    damage = np.array([groups[g][o].damage for g, o in options])
    nbytes = np.array([groups[g][o].nbytes for g, o in options], dtype=float)
    scale = max(damage.max(), 1e-300)
    unit = max(1.0, nbytes.max() / 1e4)  # HiGHS may exceed a row by 1e-6: so that this stays below a byte
    rows = [g for g, _ in options]
    one_each = csr_matrix((np.ones(len(options)), (rows, range(len(options)))), shape=(len(groups), len(options)))
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(csr_matrix(nbytes / unit), -np.inf, budget_nbytes / unit)]
    with no_words_of_c():  # HiGHS 1.12 prints debugging lines, where --json belongs
        result = milp(
            damage / scale,
            constraints=constraints,
            integrality=np.ones(len(options), dtype=int),
            bounds=Bounds(0, 1),
            options={"time_limit": seconds, "mip_rel_gap": 1e-5},
        )
    if result.x is None:
        return None
    choice = [0] * len(groups)
    for taken, (g, o) in zip(result.x > 0.5, options, strict=True):
        if taken:
            choice[g] = o
    choice = _within(groups, choice, budget_nbytes)
    total = sum(groups[g][o].damage for g, o in enumerate(choice))
    used = sum(groups[g][o].nbytes for g, o in enumerate(choice))
    bound = result.mip_dual_bound if result.mip_dual_bound is not None else 0.0
    return Solution(tuple(choice), used, total, min(float(bound) * scale, total))


def efficient(group: list[Option]) -> list[int]:
    """Options that no other one of the group beats in both bytes and damage."""
    order = sorted(range(len(group)), key=lambda o: (group[o].nbytes, group[o].damage))
    best, kept = float("inf"), []
    for o in order:
        if group[o].damage < best:
            best = group[o].damage
            kept.append(o)
    return kept


def _within(groups: list[list[Option]], choice: list[int], budget_nbytes: int) -> list[int]:
    """``choice``, repaired where the solver's tolerance let it exceed the budget by some bytes: cheapest steps down."""
    used = sum(groups[g][o].nbytes for g, o in enumerate(choice))
    while used > budget_nbytes:
        steps = [
            ((groups[g][o].damage - groups[g][choice[g]].damage) / (groups[g][choice[g]].nbytes - groups[g][o].nbytes), g, o)
            for g in range(len(groups))
            for o in efficient(groups[g])
            if groups[g][o].nbytes < groups[g][choice[g]].nbytes
        ]
        _, g, o = min(steps)
        used -= groups[g][choice[g]].nbytes - groups[g][o].nbytes
        choice[g] = o
    return choice


def price(groups: list[list[Option]], budget_nbytes: int) -> float:
    """Shadow price at the budget: damage that one more byte saves in the linear relaxation (its convex hull slope)."""
    used = sum(group[convex_hull(group)[0]].nbytes for group in groups)
    for slope, extra, _ in _steps(groups):
        used += extra
        if used > budget_nbytes:
            return slope
    return 0.0


def frontier(groups: list[list[Option]]) -> list[tuple[int, float]]:
    """(bytes, damage) of every choice on the convex hull: each has the least damage that its bytes can buy."""
    start = [group[convex_hull(group)[0]] for group in groups]
    nbytes, damage = sum(o.nbytes for o in start), sum(o.damage for o in start)
    points = [(nbytes, damage)]
    for _, extra, saved in _steps(groups):
        nbytes, damage = nbytes + extra, damage - saved
        points.append((nbytes, max(damage, 0.0)))
    return points


def _steps(groups: list[list[Option]]) -> list[tuple[float, int, float]]:
    """(damage saved per byte, bytes, damage saved) of every upgrade along the groups' hulls, the best first."""
    steps = []
    for group in groups:
        for a, b in pairwise(convex_hull(group)):
            extra, saved = group[b].nbytes - group[a].nbytes, group[a].damage - group[b].damage
            steps.append((saved / extra, extra, saved))
    return sorted(steps, reverse=True)


def convex_hull(group: list[Option]) -> list[int]:
    """Options on the lower convex hull of damage over bytes, by growing bytes."""
    hull: list[int] = []
    for o in efficient(group):
        while len(hull) >= 2 and _slope(group, hull[-2], hull[-1]) <= _slope(group, hull[-1], o):
            hull.pop()
        hull.append(o)
    return hull


def _slope(group: list[Option], a: int, b: int) -> float:
    return (group[a].damage - group[b].damage) / (group[b].nbytes - group[a].nbytes)
