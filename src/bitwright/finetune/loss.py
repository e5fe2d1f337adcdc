"""Losses without logits: the output head runs on some of the vocabulary at a time, forward and backward at once.

As in cut cross-entropy (arXiv 2411.09009), but with products that any device has. The gradient by the states is made while the
logits of a part are there, since the head is frozen: sums over the vocabulary so far are scaled down whenever a larger logit is
met, as FlashAttention (arXiv 2205.14135) does with keys. So each part of a packed head is decoded once for every
CHUNK_TOKENS tokens, and nothing of size tokens x vocabulary is ever kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from bitwright.finetune.weights import FrozenWeight, PickedWeight
from bitwright.models.logits import PLAIN, LogitRule

CHUNK_ENTRIES = 1 << 22  # logits that exist at once: 16 MiB in float32
GPU_CHUNK_ENTRIES = 1 << 25  # the same on a GPU, where small products cost as much as larger ones
CHUNK_TOKENS = 1 << 11  # so many tokens at once
OTHERS = 1 << 13  # tokens of the vocabulary that stand for all those that no target keeps
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Head:
    """An output head that is frozen: logits are what ``rule`` makes of h W^T + ``bias``."""

    weight: FrozenWeight
    bias: Tensor | None = None  # [V]
    rule: LogitRule = PLAIN
    for_how_many: Tensor | None = None  # [V] float32: tokens that each row stands for; one where it is left out

    def logits(self, states: Tensor) -> Tensor:
        """Logits [T, V] of ``states`` [T, K], float32."""
        return self._logits(self.weight.times(states), slice(None))

    def parts(self, states: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Some of the vocabulary at a time: which, its rows of W [v, K], and logits [T, v] of ``states`` [T, K], float32."""
        entries = CHUNK_ENTRIES if states.device.type == "cpu" else GPU_CHUNK_ENTRIES
        for rows, tile in self.weight.tiles(states.dtype, entries // max(1, len(states))):
            yield rows, tile, self._logits(states @ tile.t(), rows)

    def _logits(self, products: Tensor, rows: slice) -> Tensor:
        products = products.float()
        if self.bias is not None:
            products += self.bias[rows]
        return self.rule.logits(products)


@dataclass(frozen=True)
class Target:
    """What should follow each of T tokens: a distribution. The tokens ``kept`` stand alone, all others count as one.

    ``kept`` integers [T, k], their ``log_p`` [T, k], and ``log_tail`` [T] of the rest, -inf where there is none.
    """

    kept: Tensor
    log_p: Tensor
    log_tail: Tensor

    @classmethod
    def of_labels(cls, labels: Tensor) -> Self:
        """One token each, ``labels`` int64 [T]: the divergence from that is the negative log-likelihood."""
        certain = torch.zeros(len(labels), 1, device=labels.device)
        return cls(labels[:, None], certain, torch.full_like(certain[:, 0], -torch.inf))

    def part(self, tokens: slice) -> Target:
        """That of some of the tokens, with types that can be computed with."""
        return Target(self.kept[tokens].long(), self.log_p[tokens].float(), self.log_tail[tokens].float())


@dataclass(frozen=True)
class Found:
    """How far T tokens are from their target, summed, float64; the ``likeliest`` token after each, int64 [T]; and the gradient
    of that sum by the states [T, K], in their type, where it was asked for."""

    total: Tensor
    likeliest: Tensor
    gradient: Tensor | None


@torch.no_grad()
def distance(states: Tensor, head: Head, target: Target, with_gradient: bool = False) -> Found:
    """How far what ``head`` says after ``states`` [T, K] is from ``target``: KL(target || model), summed over tokens.

    It is NaN where the target keeps a token that the head does not know.
    """
    total = torch.zeros((), dtype=torch.float64, device=states.device)
    likeliest = torch.zeros(len(states), dtype=torch.long, device=states.device)
    gradient = torch.empty_like(states) if with_gradient else None
    for start in range(0, len(states), CHUNK_TOKENS):
        part = slice(start, start + CHUNK_TOKENS)
        total += _distance(states[part], head, target.part(part), likeliest[part], None if gradient is None else gradient[part])
    return Found(total, likeliest, gradient)


def _distance(states: Tensor, head: Head, target: Target, likeliest: Tensor, gradient: Tensor | None) -> Tensor:
    """The same of some tokens at once; ``likeliest`` [T] and ``gradient`` [T, K] are written to."""
    softmax, pull = _Softmax(target, likeliest), None if gradient is None else _Pull(states)
    for rows, tile, logits in head.parts(states):
        slope = head.rule.slope(logits) if pull else 1.0
        kept = _Kept.among(target, rows)
        shrinks = softmax.add(logits, rows, kept, head.for_how_many)
        if pull:
            pull.shrink(shrinks)
            pull.add_kept(tile, softmax, slope, kept)
            pull.add_rest(tile, logits.mul_(slope))
        del logits, slope  # before the next ones are made
    log_q, log_rest = softmax.log_q()
    p, due = target.log_p.exp(), target.log_tail.exp()
    if pull and gradient is not None:
        gradient.copy_(pull.gradient(softmax, due))
    rest = torch.where(due > 0, due * (target.log_tail - log_rest), 0.0)
    return (p * (target.log_p - log_q)).double().sum() + rest.double().sum()


@dataclass(frozen=True)
class _Kept:
    """Which tokens that a target keeps are in a part of the vocabulary: at ``position`` of the text the ``place``-th, in
    ``column`` of the part, with probability ``p``. In the order of positions."""

    position: Tensor
    place: Tensor
    column: Tensor
    p: Tensor

    @classmethod
    def among(cls, target: Target, rows: slice) -> Self:
        position, place = ((target.kept >= rows.start) & (target.kept < rows.stop)).nonzero(as_tuple=True)
        column = target.kept[position, place] - rows.start
        return cls(position, place, column, target.log_p[position, place].exp())


class _Softmax:
    """Over the part of the vocabulary that was seen: the logits of the tokens that a target keeps, and of all others the sum of
    exp(logit), in units of exp(``peak``), the largest logit so far. Apart, since one less what is kept would be no number for
    a small rest."""

    def __init__(self, target: Target, likeliest: Tensor) -> None:
        self.kept_logits = torch.full_like(target.log_p, torch.nan)
        self.peak = torch.full_like(target.log_tail, torch.finfo(torch.float32).min)[:, None]
        self.rest = torch.zeros_like(self.peak)
        self.likeliest = likeliest

    def add(self, logits: Tensor, rows: slice, kept: _Kept, for_how_many: Tensor | None) -> Tensor:
        """Take in the ``logits`` [T, v] of ``rows`` of the vocabulary, which become exp(logit) in the new unit, times
        ``for_how_many`` [V], 0 for what is kept; what sums in the old unit are to be multiplied with, [T, 1]."""
        at = (kept.position, kept.column)
        self.kept_logits[kept.position, kept.place] = logits[at]
        top, column = logits.max(1, keepdim=True)
        self.likeliest.copy_(torch.where(top > self.peak, column + rows.start, self.likeliest[:, None])[:, 0])
        peak = torch.maximum(top, self.peak)
        shrinks, self.peak = (self.peak - peak).exp_(), peak
        logits.sub_(peak).exp_()[at] = 0.0
        if for_how_many is not None:
            logits.mul_(for_how_many[rows])
        self.rest = self.rest * shrinks + logits.sum(1, keepdim=True)
        return shrinks

    def mass(self) -> Tensor:
        """The sum of exp(logit) over all tokens, [T, 1], once the whole vocabulary was seen."""
        return self.rest + (self.kept_logits - self.peak).exp().sum(1, keepdim=True)

    def log_q(self) -> tuple[Tensor, Tensor]:
        """Logarithms of the probability of the kept tokens, [T, k], and of all others together, [T]."""
        log_mass = self.mass().log()
        return self.kept_logits - self.peak - log_mass, (self.rest.clamp(min=TINY).log() - log_mass)[:, 0]


class _Pull:
    """Sums of rows of the head so far, each times d logit / d z, float32 [T, K]: exp(logit) W over tokens that are not kept and
    over kept ones, both in the unit of the softmax, and p W over kept ones. Kept ones stand apart since p and q nearly cancel
    there."""

    def __init__(self, states: Tensor) -> None:
        self.by_rest, self.by_q, self.by_p = (torch.zeros_like(states, dtype=torch.float32) for _ in range(3))

    def shrink(self, shrinks: Tensor) -> None:
        """Go over to a new unit."""
        self.by_rest.mul_(shrinks)
        self.by_q.mul_(shrinks)

    def add_kept(self, tile: Tensor, softmax: _Softmax, slope: Tensor | float, kept: _Kept) -> None:
        """Take in what is ``kept`` of ``tile`` [v, K], some rows of W; ``slope`` [T, v] is d logit / d z."""
        if not len(kept.position):
            return
        wide = tile.float()
        begins = torch.searchsorted(kept.position, torch.arange(len(self.by_p), device=tile.device))
        own_slope = slope[kept.position, kept.column] if isinstance(slope, Tensor) else slope
        power = (softmax.kept_logits[kept.position, kept.place] - softmax.peak[kept.position, 0]).exp()
        for total, factor in ((self.by_q, power), (self.by_p, kept.p)):
            total += embedding_bag(kept.column, wide, begins, mode="sum", per_sample_weights=factor * own_slope)

    def add_rest(self, tile: Tensor, power: Tensor) -> None:
        """Take in the others, with exp(logit) d logit / d z in ``power`` [T, v]."""
        self.by_rest += power.to(tile.dtype) @ tile

    def gradient(self, softmax: _Softmax, due: Tensor) -> Tensor:
        """By the states, [T, K]. ``due`` [T]: the probability that the target gives to all tokens that it does not keep."""
        mass = softmax.mass()
        self.by_rest.mul_(1 / mass - due[:, None] / softmax.rest.clamp(min=TINY))
        return self.by_rest.add_(self.by_q.div_(mass)).sub_(self.by_p)


def drawn(head: Head, target: Target) -> tuple[Head, Target]:
    """A head of the tokens that ``target`` keeps anywhere, and of OTHERS that stand for the rest of the vocabulary, and the
    target in its numbers; both unchanged where that spares less than half.

    What all other tokens weigh together is estimated without bias, and it is little: the target keeps what is likely.
    Sampled softmax (arXiv 1412.2007) draws by frequency and corrects for that; here what is frequent is among the kept ones.
    Drawn with torch's own generator, whose state a checkpoint of transformers' Trainer keeps.
    """
    n_tokens = head.weight.n_rows
    is_kept = torch.zeros(n_tokens, dtype=torch.bool, device=target.kept.device)
    is_kept[target.kept.flatten().long()] = True
    others = (~is_kept).nonzero()[:, 0]
    if 2 * (n_tokens - len(others) + OTHERS) > n_tokens:
        return head, target
    some = others[torch.randperm(len(others))[:OTHERS].to(others.device)]
    tokens = torch.cat([is_kept.nonzero()[:, 0], some]).sort().values
    for_how_many = torch.where(is_kept[tokens], 1.0, len(others) / OTHERS)
    few = Head(PickedWeight(head.weight, tokens), None if head.bias is None else head.bias[tokens], head.rule, for_how_many)
    return few, Target(torch.searchsorted(tokens, target.kept.long()), target.log_p, target.log_tail)


class _Summed(torch.autograd.Function):
    """Sum over tokens of how far they are from a target, and its gradient by h."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Head, target: Target) -> Tensor:
        found = distance(states, head, target, states.requires_grad)
        ctx.gradient = found.gradient
        return found.total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None]:
        gradient = None if ctx.gradient is None else ctx.gradient.mul_(g.to(ctx.gradient.dtype))
        return gradient, None, None


def summed_loss(states: Tensor, head: Head, target: Target) -> Tensor:
    """How far what ``head`` says after ``states`` [T, K] is from ``target``, summed over tokens, float32.

    Tokens that do not count are left out before, so that they never reach the head. The gradient by ``states`` may be asked for
    once.
    """
    loss: Tensor = _Summed.apply(states, head, target)  # type: ignore[no-untyped-call]
    return loss
