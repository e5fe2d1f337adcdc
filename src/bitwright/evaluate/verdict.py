"""The verdict on a written checkpoint: against the 16-bit model, beside stock rounding, ablations and uniform choices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bitwright.errors import BitwrightError, Finding, fail
from bitwright.evaluate.evaluate import Candidate
from bitwright.evaluate.figures import Divergence, TaskScore
from bitwright.plan import Plan


@dataclass(frozen=True)
class Contender:
    """Something the result is compared with: how it is loaded, what it weighs, and whether the gate counts it."""

    candidate: Candidate
    nbytes: int
    predicted_nats: float | None
    uniform: bool
    plan: Plan | None = None

    @property
    def label(self) -> str:
        return self.candidate.label


@dataclass(frozen=True)
class Entry:
    """One line of the final table."""

    label: str
    nbytes: int
    divergence: Divergence
    predicted_nats: float | None
    bits_per_weight: float | None = None  # of all that is stored, over the reference's parameters
    tasks: tuple[TaskScore, ...] = ()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Entry:
        """The inverse of ``dataclasses.asdict``."""
        tasks = tuple(TaskScore(**score) for score in data["tasks"])
        return cls(**{**data, "divergence": Divergence.from_dict(data["divergence"]), "tasks": tasks})


class PartlyEvaluatedError(BitwrightError):
    """Some models could not be run: their ``failures``, and the lines of the others."""

    def __init__(self, failures: tuple[Finding, ...], entries: tuple[Entry, ...]) -> None:
        super().__init__(failures[0])
        self.failures, self.entries = failures, entries


@dataclass(frozen=True)
class Verdict:
    """All lines, the one that was shipped, and the gate's words. ``notes``: of models that could not be run."""

    entries: tuple[Entry, ...]
    stock: str  # label of what people get without us
    shipped: str
    gate: str
    notes: tuple[str, ...] = ()

    def entry(self, label: str) -> Entry:
        return next(e for e in self.entries if e.label == label)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Verdict:
        """The inverse of ``dataclasses.asdict``."""
        entries = tuple(Entry.from_dict(entry) for entry in data["entries"])
        return cls(**{**data, "entries": entries, "notes": tuple(data["notes"])})


def judge(
    result: Contender, others: list[Contender], divergences: list[Divergence], stock: str, may_replace: bool = True
) -> Verdict:
    """The gate: a uniform choice of no more bytes that measures better replaces the result where it ``may_replace`` it.

    ``divergences`` are those of ``[result, *others]`` in this order.
    """
    contenders = [result, *others]
    entries = tuple(Entry(c.label, c.nbytes, d, c.predicted_nats) for c, d in zip(contenders, divergences, strict=True))
    own = entries[0]
    if not math.isfinite(own.divergence.kl):
        raise fail(
            "verify/not-finite",
            result.candidate.path,
            saw=f"divergence {own.divergence.kl}",
            wanted="a finite number",
            help="bitwright doctor SOURCE --weights",
        )
    rivals = [
        entry
        for contender, entry in zip(contenders, entries, strict=True)
        if contender.uniform and entry.nbytes <= own.nbytes and entry.divergence.kl < own.divergence.kl
    ]
    if not rivals:
        return Verdict(entries, stock, own.label, "no uniform choice of as many bytes measures better")
    best = min(rivals, key=lambda entry: entry.divergence.kl)
    if not may_replace:
        return Verdict(
            entries, stock, own.label, f"{best.label} measures better ({best.divergence.kl:.4f} nats) at no more bytes"
        )
    return Verdict(
        entries,
        stock,
        best.label,
        f"{best.label} measures {best.divergence.kl:.4f} nats against {own.divergence.kl:.4f} and was shipped instead",
    )
