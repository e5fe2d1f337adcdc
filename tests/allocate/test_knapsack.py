"""The knapsack against brute force."""

from itertools import product

from hypothesis import example, given, settings
from hypothesis import strategies as st

from bitwright.allocate.knapsack import Option, convex_hull, price, solve

options = st.lists(st.builds(Option, st.integers(1, 60), st.floats(0, 10, allow_subnormal=False)), min_size=1, max_size=4)
problems = st.lists(options, min_size=1, max_size=5)


def brute_force(groups: list[list[Option]], budget: int) -> float | None:
    totals = [sum(o.damage for o in choice) for choice in product(*groups) if sum(o.nbytes for o in choice) <= budget]
    return min(totals, default=None)


@settings(max_examples=120, deadline=None)
@given(problems, st.integers(0, 320))
@example([[Option(1, 1.0), Option(2, 0.0)], [Option(1, 2.0), Option(33, 0.0)], [Option(43, 0.0)]], 77)
@example([[Option(1, 1.0), Option(33, 0.0)], [Option(1, 1.5), Option(2, 0.0)], [Option(43, 0.0)]], 77)
def test_equals_brute_force(groups: list[list[Option]], budget: int) -> None:
    solution, best = solve(groups, budget), brute_force(groups, budget)
    assert (solution is None) == (best is None)
    if solution is None or best is None:
        return
    assert solution.nbytes <= budget
    assert solution.nbytes == sum(groups[g][o].nbytes for g, o in enumerate(solution.choice))
    assert solution.damage <= best + 1e-5 * max(1.0, best)
    assert solution.bound <= best + 1e-5 * max(1.0, best)
    assert 0 <= solution.gap <= 1


@settings(max_examples=40, deadline=None)
@given(problems, st.integers(0, 300), st.integers(0, 60))
def test_more_budget_never_predicts_more_damage(groups: list[list[Option]], budget: int, more: int) -> None:
    small, large = solve(groups, budget), solve(groups, budget + more)
    if small is not None:
        assert large is not None
        assert large.damage <= small.damage + 1e-5 * max(1.0, small.damage)


def test_large_byte_counts_stay_within_the_budget() -> None:
    groups = [[Option(10**9 + i, 1.0), Option(4 * 10**9 + 7 * i, 0.1 + i / 1000)] for i in range(60)]
    budget = 120 * 10**9 + 12345
    solution = solve(groups, budget)
    assert solution is not None
    assert solution.nbytes <= budget
    assert solution.gap < 1e-3


def test_hull_and_price() -> None:
    group = [Option(10, 8.0), Option(20, 2.0), Option(30, 1.9), Option(40, 0.0)]
    assert convex_hull(group) == [0, 1, 3]
    assert price([group], 15) == 0.6
    assert price([group], 39) == 0.1
    assert price([group], 40) == 0.0
