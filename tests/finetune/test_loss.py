"""The loss without logits is the loss with them, and so is its gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from bitwright.evaluate.reference import condense
from bitwright.finetune import loss
from bitwright.finetune.loss import Head, Target, distance, drawn, summed_loss
from bitwright.finetune.weights import FrozenWeight, PackedWeight, PlainWeight
from bitwright.formats.base import Packed
from bitwright.formats.bnb4.format import BLOCK_FORMATS
from bitwright.formats.families import unpacked
from bitwright.models.logits import LogitRule
from bitwright.rounding.bnb4 import BNB4

VOCABULARY, WIDTH, TOKENS = 300, 64, 37


def head(kind: str) -> tuple[FrozenWeight, torch.Tensor]:
    torch.manual_seed(3)
    value = torch.randn(VOCABULARY, WIDTH) / 4
    if kind == "plain":
        return PlainWeight(value), value
    packed = Packed.of(BNB4.nearest(value, BLOCK_FORMATS["nf4-b64"]))
    return PackedWeight(packed), unpacked(packed).decode()


def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and vocabulary in parts that divide neither."""
    monkeypatch.setattr(loss, "CHUNK_TOKENS", 10)
    monkeypatch.setattr(loss, "CHUNK_ENTRIES", 10 * 70)


def capped(rule: LogitRule, products: torch.Tensor) -> torch.Tensor:
    logits = rule.factor * products
    return rule.cap * torch.tanh(logits / rule.cap) if rule.cap else logits


@pytest.mark.parametrize("kind", ["plain", "packed"])
@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(0.25), LogitRule(cap=5.0), LogitRule(2.0, 30.0)])
def test_the_loss_and_its_gradient(kind: str, rule: LogitRule, monkeypatch: pytest.MonkeyPatch) -> None:
    in_parts(monkeypatch)
    weight, value = head(kind)
    states = torch.randn(TOKENS, WIDTH, requires_grad=True)
    labels = torch.randint(0, VOCABULARY, (TOKENS,))
    bias = torch.randn(VOCABULARY)
    logits = capped(rule, states @ value.t() + bias)
    wanted = cross_entropy(logits, labels, reduction="sum") / 10
    (wanted_gradient,) = torch.autograd.grad(wanted, states)
    found = summed_loss(states, Head(weight, bias, rule), Target.of_labels(labels)) / 10
    (gradient,) = torch.autograd.grad(found, states)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert (gradient - wanted_gradient).norm() <= 2e-6 * wanted_gradient.norm()


def test_without_a_gradient_none_is_made() -> None:
    weight, value = head("plain")
    states, labels = torch.randn(TOKENS, WIDTH), torch.randint(0, VOCABULARY, (TOKENS,))
    found = summed_loss(states, Head(weight), Target.of_labels(labels))
    assert not found.requires_grad
    assert found.item() == pytest.approx(cross_entropy(states @ value.t(), labels, reduction="sum").item(), rel=1e-6)


@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(0.25, 5.0)])
@pytest.mark.parametrize("sureness", [1.0, 10.0])
@pytest.mark.parametrize("kept", [20, VOCABULARY])
@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_the_divergence_from_kept_distributions(
    kind: str, kept: int, sureness: float, rule: LogitRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the model, being too sure, leaves nearly nothing to the tokens that are not kept."""
    in_parts(monkeypatch)
    weight, value = head(kind)
    states = sureness * torch.randn(TOKENS, WIDTH)
    told = condense(2 * torch.randn(TOKENS, VOCABULARY), torch.zeros(TOKENS, dtype=torch.long), kept, samples=0)
    target = Target(told.likeliest, told.log_p, told.log_tail)

    exact = states.double().requires_grad_(True)
    log_q = capped(rule, exact @ value.double().t()).log_softmax(1)
    at, p = told.likeliest.long(), told.log_p.double().exp()
    wanted = (p * (told.log_p - log_q.gather(1, at))).sum()
    if kept < VOCABULARY:
        log_rest = log_q.scatter(1, at, -torch.inf).logsumexp(1)
        wanted = wanted + (told.log_tail.double().exp() * (told.log_tail - log_rest)).sum()
    (wanted_gradient,) = torch.autograd.grad(wanted, exact)

    states.requires_grad_(True)
    found = summed_loss(states, Head(weight, None, rule), target)
    (gradient,) = torch.autograd.grad(found, states)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert (gradient - wanted_gradient).norm() <= 1e-5 * wanted_gradient.norm()
    narrow = states.detach().bfloat16().requires_grad_(True)
    (gradient,) = torch.autograd.grad(summed_loss(narrow, Head(weight, None, rule), target), narrow)
    assert gradient.dtype == torch.bfloat16
    assert (gradient - wanted_gradient).norm() <= 0.03 * wanted_gradient.norm()


def test_a_token_that_the_head_does_not_know_is_no_number() -> None:
    weight, _ = head("plain")
    labels = torch.tensor([VOCABULARY, 3])
    assert bool(distance(torch.randn(2, WIDTH), Head(weight), Target.of_labels(labels)).total.isnan())


def test_tokens_that_can_never_come_and_no_tokens_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    in_parts(monkeypatch)
    weight, value = head("plain")
    bias = torch.zeros(VOCABULARY)
    bias[:75] = -torch.inf  # the whole first part
    states, labels = torch.randn(TOKENS, WIDTH), torch.randint(80, VOCABULARY, (TOKENS,))
    wanted = cross_entropy(states @ value.t() + bias, labels, reduction="sum")
    assert summed_loss(states, Head(weight, bias), Target.of_labels(labels)).item() == pytest.approx(wanted.item(), rel=1e-6)
    empty = torch.zeros(0, WIDTH, requires_grad=True)
    none = summed_loss(empty, Head(weight), Target.of_labels(labels[:0]))
    none.backward()
    assert none.item() == 0.0


def by_states(states: torch.Tensor, head: Head, target: Target) -> tuple[float, torch.Tensor]:
    """The loss and its gradient."""
    found = distance(states, head, target, with_gradient=True)
    assert found.gradient is not None
    return found.total.item(), found.gradient


@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(0.25, 5.0)])
@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_a_few_tokens_stand_for_the_others(kind: str, rule: LogitRule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly, where the others are all alike; on average, where they are not."""
    in_parts(monkeypatch)
    monkeypatch.setattr(loss, "OTHERS", 60)
    weight, value = head(kind)
    states, bias = torch.randn(TOKENS, WIDTH), torch.randn(VOCABULARY)
    told = condense(2 * torch.randn(TOKENS, 40), torch.zeros(TOKENS, dtype=torch.long), 20, samples=0)  # the first 40 tokens
    target = Target(told.likeliest, told.log_p, told.log_tail)

    alike = value.clone()
    alike[40:], bias[40:] = value[40], -4.0
    whole = Head(PlainWeight(alike), bias, rule)
    few, same = drawn(whole, target)
    assert few.weight.n_rows == 40 + 60
    (wanted, wanted_gradient), (found, gradient) = by_states(states, whole, target), by_states(states, few, same)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert (gradient - wanted_gradient).norm() <= 1e-5 * wanted_gradient.norm()

    whole = Head(weight, bias, rule)
    _, wanted_gradient = by_states(states, whole, target)
    errors = torch.stack([by_states(states, *drawn(whole, target))[1] - wanted_gradient for _ in range(50)])
    assert errors.mean(0).norm() <= 0.25 * errors.norm(dim=(1, 2)).mean()


def test_a_small_vocabulary_is_taken_whole() -> None:
    weight, _ = head("plain")
    target = Target.of_labels(torch.arange(TOKENS))
    whole = Head(weight)
    assert drawn(whole, target) == (whole, target)


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_the_likeliest_token_is_the_first_of_those_with_the_largest_logit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_parts(monkeypatch)
    weight, _ = head(kind)
    states = torch.randn(TOKENS, WIDTH)
    states[:5] = 0.0  # all logits are the same
    states[5:9] *= 1e4  # nothing is left of the others
    found = distance(states, Head(weight), Target.of_labels(torch.zeros(TOKENS, dtype=torch.long)))
    assert torch.equal(found.likeliest, Head(weight).logits(states).argmax(1))
    assert bool(found.total.isfinite())


@pytest.mark.parametrize("together", [TOKENS, 20])
def test_parts_of_a_head_are_decoded_once_for_many_tokens(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_TOKENS", together)
    monkeypatch.setattr(loss, "CHUNK_ENTRIES", together * 100)
    weight, _ = head("packed")
    seen = []
    tiles = weight.tiles
    monkeypatch.setattr(weight, "tiles", lambda *given: (seen.append(part[0].stop) or part for part in tiles(*given)))
    states = torch.randn(TOKENS, WIDTH, requires_grad=True)
    summed_loss(states, Head(weight), Target.of_labels(torch.zeros(TOKENS, dtype=torch.long))).backward()
    assert seen[:3] == [100, 200, 300]
    assert seen.count(300) == (1 if together == TOKENS else 2)
