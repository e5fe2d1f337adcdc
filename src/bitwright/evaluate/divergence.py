"""How far a model's next-token distributions are from the reference's (pure functions)."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitwright.evaluate.figures import Divergence
from bitwright.evaluate.reference import Reference

RESAMPLES = 2000
TOP = 5
MANY = 2**24  # values, more than torch's quantile takes


@dataclass(frozen=True)
class TokenFigures:
    """Per token: divergence, agreement and the two losses, each [T]."""

    kl: Tensor
    kl_variance: Tensor  # of kl, from the sampling of the tail
    same_top1: Tensor
    shared_top5: Tensor  # share of the reference's five likeliest tokens that are among the candidate's five
    nll_reference: Tensor
    nll: Tensor
    hit: Tensor  # whether the likeliest token is the one that follows

    @classmethod
    def join(cls, parts: list[TokenFigures]) -> TokenFigures:
        """Several parts' tokens one after the other, on the processor."""
        return cls(*[torch.cat([getattr(part, field.name).cpu() for part in parts]) for field in fields(cls)])


def token_figures(reference: Reference, logits: Float[Tensor, "T V"], next_ids: Int[Tensor, " n"]) -> TokenFigures:
    """KL(p || q) = sum_v p_v (log p_v - log q_v) per token from the candidate's logits [T, V] and the ids that follow [<= T].

    With the K likeliest tokens of p kept, P and Q the masses of all others under p and q, and v drawn from p's tail:
    KL = sum_top p (log p - log q) + P log(P / Q) + P E[r - 1 - log r], r = (q_v / Q) / (p_v / P).
    The last term is the divergence within the tail: E[r] = 1, so it has this mean, is never negative and varies little
    (the estimator k3 of http://joschu.net/blog/kl-approx.html). Where the vocabulary is kept whole it is absent.
    """
    scores = logits.float()
    likeliest, drawn = reference.likeliest.long(), reference.drawn.long()
    best = scores.topk(min(TOP, scores.shape[1]), -1).indices
    same = likeliest[:, 0] == best[:, 0]
    shared = (likeliest[:, : best.shape[1], None] == best[:, None, :]).any(-1).float().mean(-1)
    n = len(next_ids)
    hit = best[:n, 0] == next_ids
    of_next = scores[:n].gather(1, next_ids[:, None])[:, 0]
    of_likeliest, of_drawn = scores.gather(1, likeliest), scores.gather(1, drawn)
    tail = (scores if scores is not logits else scores.clone()).scatter_(1, likeliest, -torch.inf).logsumexp(-1)
    total = torch.logaddexp(of_likeliest.logsumexp(-1), tail)
    kl = (reference.log_p.exp() * (reference.log_p - of_likeliest + total[:, None])).sum(-1)
    variance = torch.zeros_like(kl)
    mass = reference.log_tail.exp()
    if likeliest.shape[1] < scores.shape[1]:
        kl += mass * (reference.log_tail - tail + total)
    if drawn.shape[1]:
        log_r = (of_drawn - tail[:, None]) - (reference.drawn_log_p - reference.log_tail[:, None])
        within = log_r.expm1() - log_r
        kl += mass * within.mean(-1)
        variance = mass**2 * within.var(-1) / drawn.shape[1]
    return TokenFigures(kl.clamp_(min=0), variance, same, shared, reference.nll[:n], total[:n] - of_next, hit)


def summarize(
    label: str, figures: list[TokenFigures], domains: tuple[str, ...] = (), controls: tuple[str, ...] = ()
) -> Divergence:
    """One line of a table from the figures of each text; 95 % bootstrap interval of the mean over texts.

    ``domains``: that of each sequence; with more than one the line holds one of each. Those among ``controls`` count in
    their own lines alone.
    """
    parts = {name: [f for f, domain in zip(figures, domains, strict=True) if domain == name] for name in sorted(set(domains))}
    if controls:
        figures = [f for f, domain in zip(figures, domains, strict=True) if domain not in controls]
    every = TokenFigures.join(figures)
    means = torch.stack([f.kl.mean() for f in figures]).cpu()
    tokens = torch.tensor([len(f.kl) for f in figures], dtype=torch.float64)
    weighted = means * (tokens / tokens.mean()).to(means.dtype)  # a text counts as much as it has tokens
    low, high = bootstrap_interval(weighted)
    return Divergence(
        label=label,
        kl=float(weighted.mean()),
        kl_low=low,
        kl_high=high,
        kl_median=_quantile(every.kl, 0.5),
        kl_p99=_quantile(every.kl, 0.99),
        kl_p999=_quantile(every.kl, 0.999),
        kl_max=float(every.kl.max()),
        top1=float(every.same_top1.float().mean()),
        top5=float(every.shared_top5.mean()),
        perplexity=float(every.nll.mean().exp()),
        reference_perplexity=float(every.nll_reference.mean().exp()),
        right=sum(bool(f.hit.all()) for f in figures) / len(figures),
        n_sequences=len(figures),
        n_tokens=int(every.kl.numel()),
        kl_of_sequence=tuple(float(m) for m in means),
        tokens_of_sequence=tuple(len(f.kl) for f in figures),
        kl_sampling=float(every.kl_variance.double().sum().sqrt() / every.kl.numel()),
        domains=tuple(summarize(name, own) for name, own in parts.items()) if len(parts) > 1 else (),
    )


def agreed(reference: Tensor, ids: Tensor) -> tuple[int, ...]:
    """For each row of ``ids`` [P, G]: entries before the first that differs from ``reference`` [P, G]."""
    return tuple(int(row) for row in (reference == ids).int().cumprod(1).sum(1))


def _quantile(values: Tensor, share: float) -> float:
    return (
        float(values.double().quantile(share)) if values.numel() < MANY else float(values.kthvalue(int(share * len(values)))[0])
    )


def bootstrap_interval(means: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap of the mean of ``means`` [S] (Efron 1979), with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(means), (RESAMPLES, len(means)), generator=generator)
    averages = means.double()[draws].mean(1)
    tail = (1 - confidence) / 2
    return float(averages.quantile(tail)), float(averages.quantile(1 - tail))
