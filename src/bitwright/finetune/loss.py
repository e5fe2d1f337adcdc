"""Losses without logits: the output head runs on some of the vocabulary at a time, forward and backward at once.

As in cut cross-entropy (arXiv 2411.09009), but with products that any device has. The gradient by the states is made while the
logits of a part are there, since the head is frozen: sums over the vocabulary so far are scaled down whenever a larger logit is
met, as FlashAttention (arXiv 2205.14135) does with keys. So each part of a packed head is decoded once, and nothing of size
tokens x vocabulary is ever kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from bitwright.finetune.weights import FrozenWeight
from bitwright.models.logits import PLAIN, LogitRule

CHUNK_ENTRIES = 1 << 22  # logits that exist at once: 16 MiB in float32
GPU_CHUNK_ENTRIES = 1 << 25  # the same on a GPU, where small products cost as much as larger ones
CHUNK_TOKENS = 1 << 11  # so many tokens at once
LEAST_TAIL = 1e-7  # of the probability beside the kept tokens, so that its logarithm exists


@dataclass(frozen=True)
class Head:
    """An output head that is frozen: logits are what ``rule`` makes of h W^T + ``bias``."""

    weight: FrozenWeight
    bias: Tensor | None = None  # [V]
    rule: LogitRule = PLAIN

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

    ``kept`` int64 [T, k], their ``log_p`` [T, k], and ``log_tail`` [T] of the rest, -inf where there is none.
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
    of that sum by the states [T, K], float32, where it was asked for."""

    total: Tensor
    likeliest: Tensor
    gradient: Tensor | None


def distance(states: Tensor, head: Head, target: Target, with_gradient: bool = False) -> Found:
    """How far what ``head`` says after ``states`` [T, K] is from ``target``: KL(target || model), summed over tokens."""
    parts = [slice(start, start + CHUNK_TOKENS) for start in range(0, len(states), CHUNK_TOKENS)]
    found = [_distance(states[part], head, target.part(part), with_gradient) for part in parts]
    if not found:
        return _distance(states, head, target.part(slice(None)), with_gradient)
    return Found(
        torch.stack([one.total for one in found]).sum(),
        torch.cat([one.likeliest for one in found]),
        torch.cat([one.gradient for one in found if one.gradient is not None]) if with_gradient else None,
    )


@torch.no_grad()
def _distance(states: Tensor, head: Head, target: Target, with_gradient: bool) -> Found:
    softmax, pull = _Softmax(target), _Pull(states) if with_gradient else None
    for rows, tile, logits in head.parts(states):
        slope = head.rule.slope(logits) if pull else 1.0
        kept = _Kept.among(target, rows)
        shrinks = softmax.add(logits, rows, kept)
        if pull:
            pull.add(tile, logits.mul_(slope), slope, kept, shrinks)
    log_q = softmax.log_q
    p, q, rest = target.log_p.exp(), log_q.exp(), target.log_tail.exp()
    tail = (1 - q.sum(1)).clamp_(min=LEAST_TAIL)
    total = (p * (target.log_p - log_q)).double().sum()
    total += torch.where(rest > 0, rest * (target.log_tail - tail.log()), 0.0).double().sum()
    return Found(total, softmax.likeliest, pull.gradient(softmax.mass, rest / tail) if pull else None)


@dataclass(frozen=True)
class _Kept:
    """Which tokens that a target keeps are in a part of the vocabulary: of text position ``token`` the ``place``-th, in
    ``column`` of the part, with probability ``p``. In the order of ``token``."""

    token: Tensor
    place: Tensor
    column: Tensor
    p: Tensor

    @classmethod
    def among(cls, target: Target, rows: slice) -> Self:
        token, place = ((target.kept >= rows.start) & (target.kept < rows.stop)).nonzero(as_tuple=True)
        return cls(token, place, target.kept[token, place] - rows.start, target.log_p[token, place].exp())

    def summed(self, tile: Tensor, factor: Tensor, n_tokens: int) -> Tensor:
        """Of each text position the sum of its kept rows of ``tile``, each times its ``factor``."""
        begins = torch.searchsorted(self.token, torch.arange(n_tokens, device=tile.device))
        return embedding_bag(self.column, tile, begins, mode="sum", per_sample_weights=factor)


class _Softmax:
    """Sums of exp(logit) over the part of the vocabulary that was seen, in units of exp(``peak``), the largest logit so far."""

    def __init__(self, target: Target) -> None:
        self.kept_logits = torch.zeros_like(target.log_p)
        self.peak = torch.full_like(target.log_tail, -torch.inf)[:, None]
        self.mass = torch.zeros_like(self.peak)
        self.likeliest = torch.zeros_like(target.kept[:, 0])

    def add(self, logits: Tensor, rows: slice, kept: _Kept) -> Tensor:
        """Take in the ``logits`` [T, v] of ``rows`` of the vocabulary, which become exp(logit) in the new unit; what sums in
        the old unit are to be multiplied with, [T, 1]."""
        self.kept_logits[kept.token, kept.place] = logits[kept.token, kept.column]
        top, column = logits.max(1, keepdim=True)
        self.likeliest = torch.where(top > self.peak, column + rows.start, self.likeliest[:, None])[:, 0]
        peak = torch.maximum(top, self.peak)
        shrinks, self.peak = (self.peak - peak).exp_(), peak
        self.mass = self.mass * shrinks + logits.sub_(peak).exp_().sum(1, keepdim=True)
        return shrinks

    @property
    def log_q(self) -> Tensor:
        """Of the kept tokens, [T, k], once the whole vocabulary was seen."""
        return self.kept_logits - self.peak - self.mass.log()


class _Pull:
    """Sums of rows of the head so far, float32 [T, K]: exp(logit) W over tokens that are not kept and over kept ones, both in
    the unit of the softmax, and p W over kept ones. Kept ones stand apart since p and q nearly cancel there."""

    def __init__(self, states: Tensor) -> None:
        self.by_rest, self.by_q, self.by_p = (torch.zeros_like(states, dtype=torch.float32) for _ in range(3))

    def add(self, tile: Tensor, power: Tensor, slope: Tensor | float, kept: _Kept, shrinks: Tensor) -> None:
        """Take in ``tile`` [v, K], some rows of W, with exp(logit) d logit / d z in ``power`` [T, v] and d logit / d z in
        ``slope``. ``power`` is overwritten."""
        self.by_rest.mul_(shrinks)
        self.by_q.mul_(shrinks)
        if len(kept.token):
            wide, at = tile.float(), (kept.token, kept.column)
            self.by_q += kept.summed(wide, power[at], len(power))
            self.by_p += kept.summed(wide, kept.p * (slope[at] if isinstance(slope, Tensor) else slope), len(power))
            power[at] = 0.0
        self.by_rest += power.to(tile.dtype) @ tile

    def gradient(self, mass: Tensor, covered: Tensor) -> Tensor:
        """By the states, [T, K]. ``covered`` [T]: of the probability that the model gives to the rest, the share that is its
        due."""
        return self.by_rest.mul_((1 - covered)[:, None] / mass).add_(self.by_q.div_(mass)).sub_(self.by_p)


class _Summed(torch.autograd.Function):
    """Sum over tokens of how far they are from a target, and its gradient by h."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Head, target: Target) -> Tensor:
        found = distance(states, head, target, states.requires_grad)
        ctx.gradient = None if found.gradient is None else found.gradient.to(states.dtype)
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
