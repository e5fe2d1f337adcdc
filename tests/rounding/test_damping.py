"""Damping that follows the data: what is expected of it, and what it gains, against rounding itself."""

import pytest
import torch
from torch import Tensor

from bitwright.formats.bnb4.format import BLOCK_FORMATS
from bitwright.rounding.bnb4 import rounded
from bitwright.rounding.kernels.damping import DAMPINGS, Unseen, choose_damping, expected_error
from bitwright.rounding.kernels.error_feedback import DAMPING, Feedback
from bitwright.rounding.kernels.inverse_factor import inverse_factor

K = 128
FORMAT = BLOCK_FORMATS["nf4-b64-dq"]


def tokens(count: int, seed: int) -> Tensor:
    """Inputs with a few strong directions and columns of unlike size, as in a model."""
    mixing = torch.randn(K, K, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -1.5, K)
    return torch.randn(count, K, generator=torch.Generator().manual_seed(seed)) @ mixing.t()


def moment_of(x: Tensor) -> Tensor:
    moment = x.t() @ x
    return moment / moment.diagonal().mean()


def test_the_expected_error_is_that_of_white_errors_fed_forward() -> None:
    moment, x = moment_of(tokens(1000, 1)), tokens(200, 2)
    moment.diagonal().add_(0.1)
    weights = torch.rand(200)
    errors = torch.randn(20_000, K, generator=torch.Generator().manual_seed(3))
    factor = inverse_factor(moment.clone())
    assert factor is not None
    change = errors @ (factor / factor.diagonal()[:, None])  # what error feedback adds up for each column
    cost = float((weights * (x @ change.t()).square().mean(1)).mean())
    assert expected_error(moment, Unseen(x, weights)) == pytest.approx(cost, rel=0.02)


def test_a_moment_that_cannot_be_factored_is_never_chosen() -> None:
    unseen = Unseen(torch.randn(50, K), torch.ones(50))
    assert expected_error(-torch.eye(K), unseen) == float("inf")
    broken = torch.ones(K, K) - 1.05 * torch.eye(K)
    assert choose_damping(broken, unseen)[0] >= 0.1


def test_the_fewer_the_tokens_the_stronger_the_damping() -> None:
    unseen = Unseen(tokens(2000, 9), torch.ones(2000))
    chosen = [choose_damping(moment_of(tokens(count, 1)), unseen)[0] for count in (K // 2, 4 * K, 100 * K)]
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[0] > chosen[2]
    assert set(chosen) <= set(DAMPINGS)


def test_rounding_under_it_loses_less_on_other_tokens() -> None:
    """Real rounding, judged on tokens that neither the moment nor the choice has seen."""
    seen, unseen, other = tokens(K // 2, 1), tokens(300, 2), tokens(5000, 3)
    weight = torch.randn(64, K, generator=torch.Generator().manual_seed(4))
    costs = []
    for evidence in (None, Unseen(unseen, torch.ones(len(unseen)))):
        feedback = Feedback.of(moment_of(seen), evidence)
        (codes,) = rounded(weight, feedback, [FORMAT], sweeps=0)
        costs.append(float(((codes.decode() - weight) @ other.t()).square().sum()))
    assert Feedback.of(moment_of(seen)).damping == DAMPING
    assert costs[1] < 0.9 * costs[0]
