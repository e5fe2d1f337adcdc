"""Calibration samples, cut into folds that are used for one purpose each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bitwright.data.samples import Sample

MIN_SAMPLES = 6  # two per fold: below that no standard error exists
SHARES = (0.25, 0.125)  # of the samples that choose and that predict; the rest round


@dataclass(frozen=True)
class Folds:
    """Samples, separate for rounding, for choosing formats and for predicting the damage of the choice."""

    rounding: tuple[Sample, ...]
    choosing: tuple[Sample, ...]
    predicting: tuple[Sample, ...]
    source: str

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


def fold(samples: Sequence[Sample], source: str, seed: int) -> Folds:
    """Shuffle ``samples`` and cut them by SHARES: rounding gets what choosing and predicting leave."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    mixed = tuple(samples[i] for i in order)
    choosing, predicting = (max(2, round(len(samples) * share)) for share in SHARES)
    rounding = len(samples) - choosing - predicting
    return Folds(mixed[:rounding], mixed[rounding : rounding + choosing], mixed[rounding + choosing :], source)
