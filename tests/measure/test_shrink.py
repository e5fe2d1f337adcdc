"""Shrinkage brings noisy estimates closer to the truth and leaves exact ones alone."""

import random

import pytest

from bitwright.measure.shrink import Observation, shrink


def simulated(n_sequences: int, spread: float, seed: int) -> tuple[list[list[Observation]], list[list[float]], list[str]]:
    chance = random.Random(seed)
    weights, truths, roles = [], [], []
    for i in range(60):
        ratio = (2.0 if i % 2 else 0.5) * chance.lognormvariate(0, spread)
        estimates, true = [], []
        for factor in (1.0, 1.3):
            moment = factor * chance.lognormvariate(0, 1.0)
            damage = ratio * moment
            draws = [damage * chance.gauss(0, 1) ** 2 for _ in range(n_sequences)]
            mean = sum(draws) / n_sequences
            error = (sum((d - mean) ** 2 for d in draws) / (n_sequences - 1) / n_sequences) ** 0.5
            estimates.append(Observation(mean, error, moment))
            true.append(damage)
        weights.append(estimates)
        truths.append(true)
        roles.append("down_proj" if i % 2 else "up_proj")
    return weights, truths, roles


@pytest.mark.parametrize("spread", [0.0, 0.2, 1.0])
def test_errors_get_smaller(spread: float) -> None:
    before = after = 0.0
    for seed in range(5):
        weights, truths, roles = simulated(24, spread, seed)
        for estimates, shrunk, true in zip(weights, shrink(weights, roles), truths, strict=True):
            for e, (damage, error), t in zip(estimates, shrunk, true, strict=True):
                before += (e.fisher / t - 1) ** 2
                after += (damage / t - 1) ** 2
                assert error >= 0
    assert after < (0.5 if spread < 0.5 else 0.9) * before


def test_exact_estimates_and_zeros_stay() -> None:
    exact = [[Observation(m * r, 0.0, m)] for m, r in ((1.0, 2.0), (3.0, 5.0), (2.0, 0.1), (4.0, 1.0))]
    for estimates, shrunk in zip(exact, shrink(exact, ["q"] * 4), strict=True):
        assert shrunk[0][0] == pytest.approx(estimates[0].fisher)
    zeros = [[Observation(0.0, 0.0, 0.0)], [], [Observation(1.0, 0.2, 2.0)]]
    assert [[d for d, _ in row] for row in shrink(zeros, ["q"] * 3)] == [[0.0], [], [pytest.approx(1.0)]]
