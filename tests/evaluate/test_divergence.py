"""Divergence and its interval against closed forms."""

import pytest
import torch

from bitwright.evaluate.divergence import Divergence, agreed, bootstrap_interval, compare, summarize
from bitwright.evaluate.evaluate import Candidate
from bitwright.evaluate.verify import Contender, judge


def test_compare_is_the_definition() -> None:
    p, q = torch.randn(5, 11), torch.randn(5, 11)
    ids = torch.tensor([1, 2, 3, 4])
    figures = compare(p.log_softmax(-1), q, ids)
    expected = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    assert torch.allclose(figures.kl, expected, atol=1e-6)
    assert torch.allclose(figures.nll, torch.nn.functional.cross_entropy(q[:4], ids, reduction="none"))
    assert torch.equal(figures.same_top1, p.argmax(-1) == q.argmax(-1))
    for t in range(5):
        best = [set(x[t].topk(5).indices.tolist()) for x in (p, q)]
        assert float(figures.shared_top5[t]) == pytest.approx(len(best[0] & best[1]) / 5)
    same = compare(p.log_softmax(-1), p, ids)
    assert float(same.kl.max()) < 1e-6
    assert bool(same.same_top1.all())
    assert float(same.shared_top5.min()) == 1


def test_summary_and_interval() -> None:
    torch.manual_seed(0)
    figures = [compare(torch.randn(20, 9).log_softmax(-1), torch.randn(20, 9), torch.arange(8)) for _ in range(12)]
    line = summarize("x", figures)
    assert line.n_tokens == 240
    assert line.n_sequences == 12
    assert line.kl_low < line.kl < line.kl_high < line.kl_max
    assert line.kl_median < line.kl_p99 < line.kl_p999 <= line.kl_max
    assert 0 < line.top1 < line.top5 < 1
    assert line.kl == pytest.approx(sum(line.kl_of_sequence) / 12)
    means = torch.randn(400, generator=torch.Generator().manual_seed(1)) + 3
    low, high = bootstrap_interval(means)
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_greedy_tokens_until_the_first_difference() -> None:
    reference = torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 3]])
    assert agreed(reference, torch.tensor([[1, 2, 3], [1, 9, 3], [9, 2, 3]])) == (3, 1, 0)


def line(label: str, kl: float) -> Divergence:
    return Divergence(label, kl, kl, kl, kl, kl, kl, kl, 1.0, 1.0, 1.0, 1.0, 1, 1, (kl,))


def contender(label: str, nbytes: int, uniform: bool) -> Contender:
    return Contender(Candidate(label, "x"), nbytes, None, uniform)


@pytest.mark.parametrize(
    ("rival", "kl", "shipped"),
    [
        (contender("uniform", 90, True), 0.04, "uniform"),
        (contender("uniform", 110, True), 0.04, "ours"),  # more bytes
        (contender("ablation", 90, False), 0.04, "ours"),  # not a uniform choice
        (contender("uniform", 90, True), 0.06, "ours"),
    ],
)
def test_the_gate_ships_a_uniform_choice_that_measures_better(rival: Contender, kl: float, shipped: str) -> None:
    verdict = judge(contender("ours", 100, False), [rival], [line("ours", 0.05), line(rival.label, kl)], "stock NF4")
    assert verdict.shipped == shipped
    assert ("shipped instead" in verdict.gate) == (shipped != "ours")
