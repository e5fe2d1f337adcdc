"""The pure functions of the measurement against their definitions."""

import pytest
import torch

from bitwright.measure import curvature
from bitwright.measure.curvature import (
    add_second_moment,
    blend_into,
    damage,
    draw,
    drawn_at,
    fisher_scores,
    relative_output_errors,
    relative_weight_error,
    token_weights,
)


def moment_of(x: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    moment = torch.zeros(x.shape[1], x.shape[1])
    add_second_moment(moment, x, weights)
    return moment


@pytest.mark.parametrize("rows", [1024, 4])
def test_second_moments_are_weighted_sums_of_outer_products(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature, "CHUNK_ROWS", rows)
    x, g = torch.randn(50, 6), torch.randn(50, 4)
    weights = token_weights(g)
    expected = sum(w * torch.outer(row, row) for w, row in zip(weights, x, strict=True))
    assert torch.allclose(moment_of(x, weights), expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(moment_of(x), x.t() @ x, rtol=1e-5, atol=1e-5)
    tiny = moment_of(x.bfloat16(), token_weights(g * 1e-18))
    assert torch.allclose(tiny * 1e36, expected, rtol=0.05, atol=0.5), "weights below bfloat16's range survive"


def test_blend_gives_both_the_same_weight() -> None:
    a, b = torch.eye(3) * 5, torch.diag(torch.tensor([0.0, 1.0, 2.0])) * 1e6
    assert torch.allclose(
        blend_into(b.clone(), a, 0.25), 0.25 * torch.eye(3) + 0.75 * torch.diag(torch.tensor([0.0, 1.0, 2.0]))
    )


@pytest.mark.parametrize("chunk", [64 * 2**20, 1])
def test_fisher_scores_are_inner_products_with_the_gradient(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature, "CHUNK_BYTES", chunk)
    x, g = torch.randn(5, 9, 6), torch.randn(5, 9, 4)
    changes = [torch.randn(4, 6) for _ in range(3)]
    expected = torch.stack([torch.einsum("nk,stn,stk->s", change, g, x) for change in changes])
    assert torch.allclose(fisher_scores(changes, x, g).float(), expected, rtol=1e-4, atol=1e-4)


def test_the_quadratic_form_predicts_the_divergence_of_a_small_change() -> None:
    """Softmax regression, where inputs, gradients and the divergence itself are all in closed form."""
    generator = torch.Generator().manual_seed(0)
    n_draws, n_tokens = 4000, 8
    weight, change = torch.randn(5, 7, generator=generator), torch.randn(5, 7, generator=generator) * 0.02
    x = torch.randn(n_tokens, 7, generator=generator)
    log_p = (x @ weight.t()).log_softmax(-1)
    log_q = (x @ (weight + change).t()).log_softmax(-1)
    divergence = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    y = torch.multinomial(log_p.exp(), n_draws, replacement=True, generator=generator).t()
    gradients = log_p.exp().expand(n_draws, -1, -1) - torch.nn.functional.one_hot(y, 5)
    scores = fisher_scores([change], x.expand(n_draws, -1, -1), gradients)
    predicted, error = damage(scores, n_tokens)
    assert float(predicted) == pytest.approx(divergence, abs=4 * float(error) + 0.02 * divergence)


def test_relative_errors() -> None:
    weight, change = torch.randn(4, 6), torch.randn(4, 6)
    moment = torch.randn(6, 50)
    moment = moment @ moment.t() / 50
    assert relative_weight_error(weight, change) == pytest.approx(float(change.norm() / weight.norm()))
    factor = torch.linalg.cholesky(moment)
    expected = float((change @ factor).norm() / (weight @ factor).norm())
    assert relative_output_errors(weight, [change], moment)[0] == pytest.approx(expected, rel=1e-3)
    assert relative_weight_error(torch.zeros(2, 2), torch.zeros(2, 2)) == 0.0
    assert relative_output_errors(torch.zeros(2, 2), [torch.zeros(2, 2)], torch.eye(2)) == [0.0]


@pytest.mark.parametrize("n_entries", [5, 256, 700])
def test_draws_follow_the_softmax(n_entries: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, n_entries, generator=generator) * 2
    logits[0, 3] = -torch.inf
    n_draws = 200_000
    even = torch.arange(n_draws).add(0.5).div(n_draws)  # every quantile once: the counts are the distribution itself
    drawn = torch.cat([draw(logits.expand(len(u), -1), u[:, None])[:, 0] for u in even.split(4000)])
    counts = drawn.bincount(minlength=n_entries)
    expected = logits.double().softmax(-1)[0] * n_draws
    assert (counts - expected).abs().max() <= 3
    assert counts[3] == 0
    edges = draw(logits.expand(2, -1), torch.tensor([[0.0], [1.0]]))
    assert ((edges >= 0) & (edges < n_entries)).all()


@pytest.mark.parametrize("n_entries", [7, 256, 1000])
def test_several_points_of_one_distribution(n_entries: int) -> None:
    mass = torch.rand(5, n_entries, generator=torch.Generator().manual_seed(3))
    mass[:, ::3] = 0
    shares = torch.tensor([[1e-6, 0.1, 0.5, 0.9, 1.0]]).expand(5, -1)
    found = drawn_at(mass, shares)
    upto = mass.double().cumsum(-1)
    for row in range(5):
        assert bool((mass[row, found[row]] > 0).all()), "nothing without mass is drawn"
        for share, at in zip(shares[row].double() * upto[row, -1], found[row].tolist(), strict=True):
            assert upto[row, at] >= share * (1 - 1e-6)
            assert at == 0 or upto[row, at - 1] <= share * (1 + 1e-6)
