"""Spend a budget: the exact choice of a format for every weight, the frontier around it, and its price (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from bitwright.allocate.budget import budget_nbytes
from bitwright.allocate.explain import explain
from bitwright.allocate.groups import Problem, broken
from bitwright.allocate.knapsack import Option, Solution, price, solve
from bitwright.allocate.knapsack import frontier as frontier_of
from bitwright.errors import BitwrightError, fail
from bitwright.plan import SIXTEEN, Choice, FrontierPoint, Plan, Rounding
from bitwright.sensitivity import Row, Sensitivity, WeightRows

BUDGET = "+10%"  # unless another is asked for
FRONTIER_POINTS = 24
LARGEST_DAMAGE = 1e6  # nats per token, more than any model can lose
DAMAGE_STEPS = 10**9  # resolution at which --max-damage is counted

Allowed = Callable[[Row], bool]


def calibrated(row: Row) -> bool:
    """The options of a normal run: calibrated rounding, or 16 bit."""
    return row.rounding != Rounding.NEAREST


def stock_or_16bit(row: Row) -> bool:
    """The options of a hand-made skip list: the container's own rounding, or 16 bit."""
    return row.rounding != Rounding.CALIBRATED


def allocate(
    sensitivity: Sensitivity,
    budget: str = BUDGET,
    *,
    max_damage: float | None = None,
    pins: tuple[str, ...] = (),
    allowed: Allowed = calibrated,
    frontier: bool = True,
    fused_groups: bool = True,
) -> Plan:
    """The plan with the least predicted damage within ``budget``, or the fewest bytes within ``max_damage``.

    Args:
        sensitivity: The table of ``measure``.
        budget: ``+10%``, ``500MB``, ``4.6bpw``, ``like Q4_K_M``.
        max_damage: In nats per token, instead of a budget.
        pins: ``pattern=format``, shell patterns over module names or over parts of the model such as vision.
        allowed: Which rows of the table may be chosen.
        frontier: Also the least damage at other sizes.
        fused_groups: Weights that a runtime multiplies as one matrix share what it asks of them.

    Returns:
        A format for every weight, the optimum of an exact search, with reasons.

    Raises:
        BitwrightError: A budget below what the formats can reach or above the 16-bit size; a pin that matches nothing, cannot
            be stored, or breaks a group.

    Example:
        >>> plan = bitwright.allocate(table, "4.6bpw", pins=("*.down_proj=16bit",))  # doctest: +SKIP
        >>> plan.nbytes  # doctest: +SKIP
        128079044
    """
    free = _problem(sensitivity, pins, allowed)
    problem = free.fused(sensitivity) if fused_groups else free
    _require_one_budget(budget, max_damage)
    text = budget if max_damage is None else f"damage <= {max_damage:g} nats"
    limit = None if max_damage is not None else budget_nbytes(budget, sensitivity)
    if limit is not None:
        _require_reachable(sensitivity, problem.options, limit, budget)
        solution = solve(problem.options, limit - sensitivity.kept_nbytes)
    else:
        assert max_damage is not None
        solution = _least_bytes(problem.options, max_damage)
    if solution is None:
        raise fail(
            "allocate/solver",
            "HiGHS",
            saw="no solution within its time limit",
            wanted="a choice within the budget",
            help="try a slightly larger budget",
        )
    plan = _plan(sensitivity, problem, solution, text, limit, fused_groups)
    if not frontier:
        return plan
    cost = _cost_of_groups(free, problem, plan) if fused_groups and sensitivity.groups else 0.0
    return replace(plan, frontier=_frontier(problem.options, sensitivity.kept_nbytes), fused_cost_nats=cost)


def least_nbytes(sensitivity: Sensitivity, allowed: Allowed = calibrated, fused_groups: bool = True) -> int:
    """Bytes of the smallest model that ``allocate`` can choose."""
    free = _problem(sensitivity, (), allowed)
    return _least(sensitivity, (free.fused(sensitivity) if fused_groups else free).options)


def _least(sensitivity: Sensitivity, groups: list[list[Option]]) -> int:
    return sensitivity.kept_nbytes + sum(min(o.nbytes for o in group) for group in groups)


def _require_one_budget(budget: str, max_damage: float | None) -> None:
    if max_damage is not None and budget != BUDGET:
        raise fail(
            "budget/two",
            f"--budget {budget} and --max-damage {max_damage:g}",
            saw="two limits",
            wanted="one limit, in bytes or in damage",
            help="leave one of them out",
        )


def _cost_of_groups(free: Problem, fused: Problem, plan: Plan) -> float:
    """Predicted nats that a choice without the groups would save within the same budget."""
    if len(free.units) == len(fused.units):
        return 0.0
    solution = solve(free.options, (plan.budget_nbytes or plan.nbytes) - plan.kept_nbytes)
    return max(0.0, plan.damage_nats - solution.damage) if solution else 0.0


def uniform(sensitivity: Sensitivity, format: str, rounding: Rounding) -> Plan:
    """Every weight in one format (where that can store it, else in 16 bit)."""
    rows = [weight.row_or_16bit(format, rounding) for weight in sensitivity.weights]
    return given(sensitivity, rows, f"uniform {format}, {rounding}")


def stock(sensitivity: Sensitivity) -> Plan:
    """Every weight as the container's own quantizer stores it, rounded to nearest."""
    return stock_but(sensitivity, sensitivity.stock, lambda weight: False)


def stock_but(sensitivity: Sensitivity, name: str, wide: Callable[[WeightRows], bool]) -> Plan:
    """The same with the weights that are ``wide`` in 16 bit."""
    rows = [
        weight.row(SIXTEEN, Rounding.NONE) if wide(weight) else weight.row_or_16bit(weight.stock, Rounding.NEAREST)
        for weight in sensitivity.weights
    ]
    return given(sensitivity, rows, name)


def given(sensitivity: Sensitivity, rows: Sequence[Row], name: str, fused_groups: bool = True) -> Plan:
    """The plan that takes ``rows``, one of each weight. How far it is from the best one is not known."""
    pairs = zip(sensitivity.weights, rows, strict=True)
    options = tuple((row, *(other for other in weight.rows if calibrated(other) and other != row)) for weight, row in pairs)
    problem = Problem(options, tuple(False for _ in rows))
    total, damage = sum(row.nbytes for row in rows), sum(row.damage_nats for row in rows)
    solution = Solution(tuple(0 for _ in rows), total, damage, damage)
    plan = _plan(sensitivity, problem, solution, name, None, fused_groups)
    return replace(plan, gap=None, price_nats_per_mb=None)


def _problem(sensitivity: Sensitivity, pins: tuple[str, ...], allowed: Allowed) -> Problem:
    rows = [tuple(row for row in weight.rows if allowed(row)) for weight in sensitivity.weights]
    pinned = [False] * len(rows)
    for pin in pins:
        pattern, _, format = pin.partition("=")
        known = sorted({row.format for weight in sensitivity.weights for row in weight.rows})
        if format not in known:
            raise _bad_pin(pin, f"no measured format {format!r}", f"a format out of {', '.join(known)}")
        hits = [i for i, w in enumerate(sensitivity.weights) if _matches(w, pattern)]
        if not hits:
            groups = ", ".join(sorted({weight.group for weight in sensitivity.weights}))
            raise _bad_pin(
                pin, "the pattern matches no weight", f"a pattern over module names, or a part of the model: {groups}"
            )
        for i in hits:
            kept = tuple(row for row in sensitivity.weights[i].rows if row.format == format and allowed(row))
            if pinned[i] and rows[i] != kept:
                raise _bad_pin(
                    pin, f"{sensitivity.weights[i].name} is set to {rows[i][0].format} already", "one format a weight"
                )
            if not kept:
                why = dict(sensitivity.weights[i].unavailable).get(format, "not measured for it")
                raise _bad_pin(pin, f"{sensitivity.weights[i].name}: {why}", "a format that can store the weight")
            rows[i], pinned[i] = kept, True
    return Problem(tuple(rows), tuple(pinned))


def _matches(weight: WeightRows, pattern: str) -> bool:
    """Whether ``pattern`` names the weight's module, or the part of the model that it belongs to: vision is all its towers."""
    names = (weight.name.removesuffix(".weight"), weight.group, weight.group.partition("-")[0])
    return any(fnmatchcase(name, pattern) for name in names)


def _bad_pin(pin: str, saw: str, wanted: str) -> BitwrightError:
    return fail("allocate/pin", f"--set {pin!r}", saw=saw, wanted=wanted, help="--set '*.down_proj=16bit'")


def _require_reachable(sensitivity: Sensitivity, groups: list[list[Option]], limit: int, budget: str) -> None:
    least = _least(sensitivity, groups)
    most = sensitivity.sixteen_bit_nbytes()
    if limit < least:
        raise fail(
            "budget/minimum",
            f"--budget {budget}",
            saw=f"{limit / 1e6:.2f} MB",
            wanted=f"at least {least / 1e6:.2f} MB, of which {sensitivity.kept_nbytes / 1e6:.2f} MB are tensors that this "
            "container does not quantize",
            help=f"--budget {-(-least // 10**4) / 100:.2f}MB",
        )
    if limit > most:
        raise fail(
            "budget/maximum",
            f"--budget {budget}",
            saw=f"{limit / 1e6:.2f} MB",
            wanted=f"at most {most / 1e6:.2f} MB, the 16-bit model itself",
            help="use the 16-bit model as it is, or ask for less: --budget +10%",
        )


def _least_bytes(groups: list[list[Option]], max_damage: float) -> Solution | None:
    """The knapsack with the roles of bytes and damage exchanged; 16 bit costs no damage, so it always has a solution."""
    if not 0 < max_damage < LARGEST_DAMAGE:
        raise fail(
            "budget/damage",
            "--max-damage",
            saw=f"{max_damage:g}",
            wanted="a positive number of nats per token",
            help="--max-damage 0.02",
        )
    unit = max_damage / DAMAGE_STEPS
    swapped = [[Option(-int(-o.damage // unit), float(o.nbytes)) for o in group] for group in groups]
    solution = solve(swapped, DAMAGE_STEPS)
    if solution is None:
        least = sum(min(o.damage for o in group) for group in groups)
        raise fail(
            "budget/damage",
            "--max-damage",
            saw=f"{max_damage:g}",
            wanted=f"at least {least:.2g} nats, given the pins",
            help="remove pins, or allow more",
        )
    chosen = [group[o] for group, o in zip(groups, solution.choice, strict=True)]
    total, bound = sum(o.damage for o in chosen), int(solution.bound)
    return Solution(solution.choice, sum(o.nbytes for o in chosen), total, total * (bound / solution.damage))


def _frontier(groups: list[list[Option]], kept: int) -> tuple[FrontierPoint, ...]:
    """About FRONTIER_POINTS of the hull's points, evenly by rank, both ends included."""
    points = frontier_of(groups)
    last = len(points) - 1
    ranks = sorted({round(i * last / (FRONTIER_POINTS - 1)) for i in range(FRONTIER_POINTS)})
    return tuple(FrontierPoint(kept + points[r][0], points[r][1]) for r in ranks)


def _by_kind(sensitivity: Sensitivity, chosen: Sequence[Row]) -> tuple[tuple[str, float], ...]:
    """What the choice is expected to cost on each kind of calibration text."""
    kinds = sensitivity.provenance.get("kinds", [])
    measured = [row.check_by_kind for row in chosen if row.check_by_kind]
    return tuple((kind, sum(row[i] for row in measured)) for i, kind in enumerate(kinds))


def _plan(
    sensitivity: Sensitivity, problem: Problem, solution: Solution, budget: str, limit: int | None, fused_groups: bool
) -> Plan:
    chosen = problem.chosen(solution.choice)
    counts = Counter(row.format for row in chosen if row.format != SIXTEEN) or Counter([SIXTEEN])
    default = counts.most_common(1)[0][0]
    reasons = explain(sensitivity, problem, chosen, default)
    choices = tuple(
        Choice(weight.name, row.format, row.rounding, row.nbytes, row.damage_nats, pinned, reason)
        for weight, row, pinned, reason in zip(sensitivity.weights, chosen, problem.pinned, reasons, strict=True)
    )
    return Plan(
        source=sensitivity.source,
        container=sensitivity.container,
        default_format=default,
        budget=budget,
        budget_nbytes=limit,
        nbytes=sensitivity.kept_nbytes + solution.nbytes,
        kept_nbytes=sensitivity.kept_nbytes,
        damage_nats=solution.damage,
        check_nats=sum(row.check_nats for row in chosen),
        check_stderr=sum(row.check_stderr**2 for row in chosen) ** 0.5,
        check_by_kind=_by_kind(sensitivity, chosen),
        gap=solution.gap,
        price_nats_per_mb=price(problem.options, solution.nbytes) * 1e6,
        choices=choices,
        provenance=sensitivity.provenance,
        fused_groups=fused_groups,
        broken_groups=tuple(group.name for group in broken(sensitivity, {c.weight: c.format for c in choices})),
    )
