"""Divergence and its interval against closed forms."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from bitwright.evaluate.divergence import TokenFigures, agreed, bootstrap_interval, summarize, token_figures
from bitwright.evaluate.evaluate import Candidate
from bitwright.evaluate.figures import Divergence
from bitwright.evaluate.reference import DamagedError, Reference, condense, load, save
from bitwright.evaluate.verdict import Contender, judge


def test_compare_is_the_definition() -> None:
    p, q = torch.randn(5, 11), torch.randn(5, 11)
    ids = torch.tensor([1, 2, 3, 4])
    figures = token_figures(condense(p, ids), q, ids)
    expected = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    assert torch.allclose(figures.kl, expected, atol=1e-6)
    assert torch.allclose(figures.nll, torch.nn.functional.cross_entropy(q[:4], ids, reduction="none"))
    assert torch.equal(figures.same_top1, p.argmax(-1) == q.argmax(-1))
    for t in range(5):
        best = [set(x[t].topk(5).indices.tolist()) for x in (p, q)]
        assert float(figures.shared_top5[t]) == pytest.approx(len(best[0] & best[1]) / 5)
    same = token_figures(condense(p, ids), p, ids)
    assert float(same.kl.max()) < 1e-6
    assert bool(same.same_top1.all())
    assert float(same.shared_top5.min()) == 1


def steep(n_tokens: int, vocabulary: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits with the heavy tail of a language model's, and the same with noise."""
    generator = torch.Generator().manual_seed(0)
    rank = torch.rand(n_tokens, vocabulary, generator=generator).argsort(-1).add(1).float()
    p = -1.2 * rank.log() + torch.randn(n_tokens, vocabulary, generator=generator) / 2
    return p, p + noise * torch.randn(n_tokens, vocabulary, generator=generator)


@pytest.mark.parametrize("noise", [0.05, 0.3, 1.0])
def test_a_sampled_tail_gives_the_full_divergence_within_its_error(noise: float) -> None:
    p, q = steep(400, 20000, noise)
    ids = torch.arange(399)
    kept, whole = condense(p, ids), condense(p, ids, likeliest=20000)
    assert whole.drawn.shape == (400, 0)
    assert float(kept.log_tail.exp().mean()) > 0.1  # a tail worth sampling
    few, full = (summarize("x", [token_figures(reference, q.clone(), ids)]) for reference in (kept, whole))
    assert full.kl_sampling == 0
    assert abs(few.kl - full.kl) < 4 * few.kl_sampling
    assert few.kl == pytest.approx(full.kl, rel=0.005)
    assert few.perplexity == pytest.approx(full.perplexity, rel=1e-5)
    assert (few.top1, few.top5) == (full.top1, full.top5)
    without = dataclasses.replace(kept, drawn=kept.drawn[:, :0], drawn_log_p=kept.drawn_log_p[:, :0])
    coarse = float(token_figures(without, q.clone(), ids).kl.mean())
    assert coarse < 0.95 * full.kl  # the tail as one event is not enough


def test_reference_survives_the_disk_and_parts(tmp_path: Path) -> None:
    p, q = steep(30, 500, 0.3)
    ids = torch.arange(29)
    kept = condense(p, ids, likeliest=16, samples=4)
    save(tmp_path / "a" / "r.safetensors", [kept, kept], torch.tensor([[1, 2]]))
    (first, _), greedy = load(tmp_path / "a" / "r.safetensors")
    assert greedy is not None
    assert greedy.tolist() == [[1, 2]]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["r.safetensors"]
    in_parts = TokenFigures.join(
        [token_figures(first.part(slice(s, s + 10)), q[s : s + 10].clone(), ids[s : s + 10]) for s in (0, 10, 20)]
    )
    assert torch.equal(in_parts.kl, token_figures(kept, q, ids).kl)
    assert torch.equal(Reference.join([kept.part(slice(0, 7)), kept.part(slice(7, 30))]).log_p, kept.log_p)


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty"])
def test_a_damaged_reference_is_known(tmp_path: Path, harm: str) -> None:
    path, ids = tmp_path / "kept.safetensors", torch.arange(9)
    save(path, [condense(torch.randn(10, 400), ids)], None)
    data = bytearray(path.read_bytes())
    if harm == "flipped":
        data[-100] ^= 4
    path.write_bytes(bytes({"cut": data[:-50], "flipped": data, "empty": b""}[harm]))
    with pytest.raises(DamagedError):
        load(path)


def test_domains_have_lines_of_their_own() -> None:
    p, q = steep(40, 50, 0.5)
    figures = [
        token_figures(condense(p[s : s + 10], torch.arange(9)), q[s : s + 10], torch.arange(9)) for s in range(0, 40, 10)
    ]
    line = summarize("x", figures, ("code", "prose", "code", "prose"))
    assert [d.label for d in line.domains] == ["code", "prose"]
    assert line.domains[0].kl == pytest.approx((line.kl_of_sequence[0] + line.kl_of_sequence[2]) / 2)
    assert Divergence.from_dict(json.loads(json.dumps(dataclasses.asdict(line)))) == line
    assert summarize("x", figures, ("a",) * 4).domains == ()


def test_summary_and_interval() -> None:
    torch.manual_seed(0)
    figures = [
        token_figures(condense(torch.randn(20, 9), torch.arange(8)), torch.randn(20, 9), torch.arange(8)) for _ in range(12)
    ]
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
