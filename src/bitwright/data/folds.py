"""Calibration samples, cut into folds that are used for one purpose each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from bitwright.data.samples import Sample

T = TypeVar("T")
MIN_SAMPLES = 6  # two per fold: below that no standard error exists
SHARES = (0.25, 0.125)  # of the samples that choose and that predict; the rest round


@dataclass(frozen=True)
class Folds:
    """Samples, separate for rounding, for choosing formats and for predicting the damage of the choice."""

    rounding: tuple[Sample, ...]
    choosing: tuple[Sample, ...]
    predicting: tuple[Sample, ...]
    source: str
    kinds: tuple[str, ...] = ()  # of text, of each sample that predicts

    @property
    def scoring(self) -> tuple[Sample, ...]:
        return self.choosing + self.predicting

    @property
    def all(self) -> tuple[Sample, ...]:
        return self.rounding + self.scoring

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return max(sample.n_tokens for sample in self.all)

    @property
    def key(self) -> str:
        """Hash of all samples and of how they are cut."""
        digest = hashlib.sha256("".join(sample.digest() for sample in self.all).encode())
        digest.update(str([len(self.rounding), len(self.choosing), len(self.predicting)]).encode())
        return digest.hexdigest()


def fold(parts: Mapping[str, Sequence[Sample]], seed: int) -> Folds:
    """Cut samples by SHARES, rounding getting what choosing and predicting leave.

    Each of ``parts``, which are texts of different kinds by name, is shuffled and cut in the same proportions.
    """
    generator = torch.Generator().manual_seed(seed)
    every = []
    for kind, part in parts.items():
        every += [(kind, part[i]) for i in torch.randperm(len(part), generator=generator).tolist()]
    choosing, predicting = (max(2, round(len(every) * share)) for share in SHARES)
    rounding, scoring = _apart(every, choosing + predicting)
    chosen, predicted = _apart(scoring, predicting)
    first, second, third = (tuple(sample for _, sample in part) for part in (rounding, chosen, predicted))
    return Folds(first, second, third, ", ".join(parts), tuple(kind for kind, _ in predicted))


def _apart(entries: Sequence[T], count: int) -> tuple[list[T], list[T]]:
    """All but ``count`` of ``entries``, and these, which lie evenly among them."""
    taken = {(2 * i + 1) * len(entries) // (2 * count) for i in range(count)}
    return [e for i, e in enumerate(entries) if i not in taken], [entries[i] for i in sorted(taken)]
