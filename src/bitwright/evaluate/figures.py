"""What a comparison found, as figures (no torch)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TaskScore:
    """A model's share of right answers in one task, and how it differs from the reference on the same questions."""

    task: str
    metric: str
    value: float
    stderr: float
    difference: float  # from the reference
    difference_stderr: float  # of the paired differences, question by question
    n_questions: int


def task_scores(found: dict[str, dict[str, list[float]]], first: dict[str, dict[str, list[float]]]) -> list[TaskScore]:
    """A score of each task. ``found`` and ``first``, the model to differ from: task -> metric -> value of each question."""
    return [
        TaskScore(
            task, metric, *_mean(values), *_mean([a - b for a, b in zip(values, first[task][metric], strict=True)]), len(values)
        )
        for task, values_of in found.items()
        for metric, values in values_of.items()
    ]


def _mean(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    mean = sum(values) / len(values)
    spread = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return mean, math.sqrt(spread / len(values))


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
    tokens_of_sequence: tuple[int, ...] = ()
    right: float = 0.0  # share of the sequences in which the likeliest token is always the one that follows
    kl_sampling: float = 0.0  # standard error of kl from the sampling of the reference's tail
    greedy: tuple[int, ...] = ()  # of each prompt: likeliest tokens until the first that the reference would not take
    domains: tuple[Divergence, ...] = ()  # the same of each domain of the text, its name the label
    answers: tuple[tuple[int, ...], ...] = ()  # to each question: the likeliest tokens, one after the other
    tokens_per_second: float = 0.0  # while answering; 0: nothing was asked
    loaded_nbytes: int = 0  # of memory after loading, above before

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Divergence:
        """The inverse of ``dataclasses.asdict``, after a way through JSON."""
        numbers = {name: math.nan for name, value in data.items() if value is None}  # JSON knows no NaN
        kl_of_sequence = tuple(math.nan if kl is None else kl for kl in data["kl_of_sequence"])
        tokens_of_sequence = tuple(data.get("tokens_of_sequence", ()))
        domains = tuple(cls.from_dict(domain) for domain in data["domains"])
        answers = tuple(tuple(answer) for answer in data.get("answers", ()))
        of_sequence = {"kl_of_sequence": kl_of_sequence, "tokens_of_sequence": tokens_of_sequence}
        told = {**of_sequence, "greedy": tuple(data["greedy"]), "domains": domains, "answers": answers}
        return cls(**{**data, **numbers, **told})
