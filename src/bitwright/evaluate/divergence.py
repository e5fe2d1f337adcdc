"""How far a model's next-token distributions are from the reference's (pure functions)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES = 2000
TOP = 5
MANY = 2**24  # values, more than torch's quantile takes


@dataclass(frozen=True)
class TokenFigures:
    """Per token: divergence, agreement and the two losses, each [T]."""

    kl: Tensor
    same_top1: Tensor
    shared_top5: Tensor  # share of the reference's five likeliest tokens that are among the candidate's five
    nll_reference: Tensor
    nll: Tensor


def compare(reference_log_probs: Tensor, logits: Tensor, next_ids: Tensor) -> TokenFigures:
    """KL(p || q) = sum_v p_v (log p_v - log q_v) per token from log p [T, V], the candidate's logits [T, V], and the
    ids [T - 1] that follow each token but the last."""
    log_p = reference_log_probs.float().log_softmax(-1)
    log_q = logits.float().log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).clamp_(min=0)
    best_p, best_q = log_p.topk(min(TOP, log_p.shape[1]), -1).indices, log_q.topk(min(TOP, log_p.shape[1]), -1).indices
    same = best_p[:, 0] == best_q[:, 0]
    shared = (best_p[:, :, None] == best_q[:, None, :]).any(-1).float().mean(-1)
    n = len(next_ids)
    pick = next_ids[:, None]
    return TokenFigures(kl, same, shared, -log_p[:n].gather(1, pick)[:, 0], -log_q[:n].gather(1, pick)[:, 0])


@dataclass(frozen=True)
class Divergence:
    """A candidate against the reference on the same text. KL in nats per token; the interval is over sequences."""

    label: str
    kl: float
    kl_low: float
    kl_high: float
    kl_median: float
    kl_p99: float
    kl_p999: float
    kl_max: float
    top1: float
    top5: float  # mean share of the reference's five likeliest tokens that are among the candidate's five
    perplexity: float
    reference_perplexity: float
    n_sequences: int
    n_tokens: int
    kl_of_sequence: tuple[float, ...]
    greedy: tuple[int, ...] = ()  # of each prompt: likeliest tokens until the first that the reference would not take


def summarize(label: str, figures: list[TokenFigures]) -> Divergence:
    """One line of a table from the figures of each sequence; 95 % bootstrap interval of the mean over sequences."""
    kl = torch.cat([f.kl for f in figures])
    means = torch.stack([f.kl.mean() for f in figures])
    low, high = bootstrap_interval(means)
    return Divergence(
        label=label,
        kl=float(means.mean()),
        kl_low=low,
        kl_high=high,
        kl_median=_quantile(kl, 0.5),
        kl_p99=_quantile(kl, 0.99),
        kl_p999=_quantile(kl, 0.999),
        kl_max=float(kl.max()),
        top1=float(torch.cat([f.same_top1 for f in figures]).float().mean()),
        top5=float(torch.cat([f.shared_top5 for f in figures]).mean()),
        perplexity=float(torch.cat([f.nll for f in figures]).mean().exp()),
        reference_perplexity=float(torch.cat([f.nll_reference for f in figures]).mean().exp()),
        n_sequences=len(figures),
        n_tokens=int(kl.numel()),
        kl_of_sequence=tuple(float(m) for m in means),
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
