"""The pure functions of the measurement against their definitions."""

import pytest
import torch

from bitwright.measure import curvature, moments
from bitwright.measure.curvature import blend_into, damage, fisher_scores, output_energies, relative_weight_error, token_weights
from bitwright.measure.moments import SecondMoment
from bitwright.measure.traffic import Traffic
from bitwright.rounding.kernels.error_feedback import DAMPING, Feedback


def traffic_of(x: torch.Tensor, g: torch.Tensor) -> Traffic:
    """Inputs [S, T, K] and output gradients [S, T, N] of samples of one length, row by row."""
    return Traffic(x.flatten(0, 1), g.flatten(0, 1), torch.arange(len(x)).repeat_interleave(x.shape[1]))


def moment_of(x: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    moment = SecondMoment(x.shape[1], x.device)
    for part in (slice(0, 20), slice(20, None)):
        moment.add(x[part], None if weights is None else weights[part])
    return moment.take()


@pytest.mark.parametrize("rows", [1024, 4])
def test_second_moments_are_weighted_sums_of_outer_products(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "STRIP", rows)
    x, g = torch.randn(50, 6), torch.randn(50, 4)
    weights = token_weights(g)
    expected = sum(w * torch.outer(row, row) for w, row in zip(weights, x, strict=True))
    assert torch.allclose(moment_of(x, weights), expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(moment_of(x), x.t() @ x, rtol=1e-5, atol=1e-5)
    tiny = moment_of(x.bfloat16(), token_weights(g * 1e-18))
    assert torch.allclose(tiny * 1e36, expected, rtol=0.05, atol=0.5), "weights below bfloat16's range survive"


def test_moments_of_16_bit_inputs_with_unlike_columns_can_be_factored() -> None:
    """One column a thousand times as large as the others, as in models with massive activations: a sum of squares stays one."""
    x = torch.randn(3000, 96).bfloat16()
    x[:, 5] *= 1000
    moment = moment_of(x)
    assert float(torch.linalg.eigvalsh(moment.double())[0]) > 0
    assert Feedback.of(moment).damping == DAMPING


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
    assert torch.allclose(fisher_scores(changes, traffic_of(x, g), 5).float(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk", [64 * 2**20, 1])
def test_samples_may_be_of_any_length_and_a_sample_without_rows_scores_nothing(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curvature, "CHUNK_BYTES", chunk)
    counts = {4: 2, 1: 7, 0: 7, 5: 1}  # sample -> rows, in the order of the traffic
    sample = torch.tensor(list(counts)).repeat_interleave(torch.tensor(list(counts.values())))
    traffic = Traffic(torch.randn(17, 6), torch.randn(17, 4), sample)
    changes = [torch.randn(4, 6) for _ in range(3)]
    expected = torch.zeros(3, 6)
    for x, g, s in zip(traffic.x, traffic.g, sample.tolist(), strict=True):
        expected[:, s] += torch.stack([g @ change @ x for change in changes])
    found = fisher_scores(changes, traffic, 6)
    assert torch.allclose(found.float(), expected, rtol=1e-4, atol=1e-4)
    assert bool((found[:, 2:4] == 0).all())


def test_a_sample_counts_as_much_as_it_has_tokens() -> None:
    """Two samples of unlike length give what their tokens would give as one sum."""
    scores, n_tokens = torch.tensor([[3.0, 4.0, 1.0]]), torch.tensor([10, 30, 5])
    nats, _ = damage(scores, n_tokens)
    assert float(nats) == pytest.approx((9 / 2 + 16 / 2 + 1 / 2) / 45)


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
    scores = fisher_scores([change], traffic_of(x.expand(n_draws, -1, -1), gradients), n_draws)
    predicted, error = damage(scores, torch.full((n_draws,), n_tokens))
    assert float(predicted) == pytest.approx(divergence, abs=4 * float(error) + 0.02 * divergence)


def test_relative_errors() -> None:
    weight, change = torch.randn(4, 6), torch.randn(4, 6)
    assert relative_weight_error(weight, change) == pytest.approx(float(change.norm() / weight.norm()))
    x = torch.randn(7, weight.shape[1])
    expected = [float((change @ row).square().sum()) for row in x]
    assert output_energies([weight, change], x)[1].tolist() == pytest.approx(expected, rel=1e-4)
    assert relative_weight_error(torch.zeros(2, 2), torch.zeros(2, 2)) == 0.0
