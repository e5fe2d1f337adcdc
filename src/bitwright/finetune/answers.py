"""How a model answers texts that training kept apart: in this process, or as a written file in a fresh one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bitwright.data.probe import Probe
from bitwright.evaluate.evaluate import Candidate, compare
from bitwright.finetune.inputs import LABELS, TEXT, Layout
from bitwright.finetune.loss import distance
from bitwright.finetune.model import head_of
from bitwright.finetune.tokens import IGNORED, Example
from bitwright.finetune.train import learnt_of
from bitwright.host.device import reference_dtype
from bitwright.host.progress import Reporter

LEAST_KEPT = 0.9  # share of what training gained that a written file has to keep
SEEN_AT_ONCE = 32  # texts with pictures that a process is asked: their pixels are in memory together
COUNTS = 0.05  # share of the texts, from which on right answers are told from chance


@dataclass(frozen=True)
class Answers:
    """``loss`` in nats per answer token; ``right``: share of the texts whose answers come out as they stand, to the last token,
    where the likeliest token is always taken. NaN where no texts were kept."""

    loss: float
    right: float

    def share_of(self, before: Answers, best: Answers) -> float:
        """How much of what ``best`` gained over ``before`` is here: the lesser share of loss and of right answers.

        Right answers count where at least a twentieth of the texts was gained.

        >>> Answers(1.1, 0.4).share_of(Answers(2.0, 0.0), Answers(1.0, 0.5))
        0.8
        """
        shares = [(before.loss - self.loss) / (before.loss - best.loss)] if best.loss < before.loss else []
        if best.right - before.right >= COUNTS:
            shares.append((self.right - before.right) / (best.right - before.right))
        return min(shares, default=math.nan)


def held(model: Any, kept: Sequence[Example], batch: int, layout: Layout, reporter: Reporter, stage: str) -> Answers:
    """``kept`` by ``model`` as it is in memory, ``batch`` at a time, laid out by ``layout``."""
    device, total, count, right = next(model.parameters()).device, 0.0, 0, 0
    model.eval()
    if any(example.media for example in kept):
        batch = 1
    parts = [kept[start : start + batch] for start in range(0, len(kept), batch)]
    for part in reporter.track(parts, stage, len(parts)):
        inputs = {name: tensor.to(device) for name, tensor in layout(part).items()}
        with torch.no_grad():
            states, target = learnt_of(model, inputs)
        found = distance(states, head_of(model), target)
        total += float(found.total)
        count += len(states)
        missed = found.likeliest != target.kept[:, 0]
        wrong = inputs[TEXT].reshape(-1)[inputs[LABELS].reshape(-1) != IGNORED][missed]
        right += len(part) - len(wrong.unique())
    return Answers(total / count, right / len(kept)) if count else Answers(math.nan, math.nan)


def by_program(
    model: Path,
    kept: Sequence[Example],
    device: torch.device,
    scratch: Path,
    reporter: Reporter,
    stage: str,
    reference: Path | None = None,
    adapter: Path | None = None,
) -> Answers:
    """``kept`` by the written ``model``, with what lies in the directory ``adapter`` over it: its own program loads them in a
    fresh process.

    ``reference``: the 16-bit model that it is compared with on the way; where there is none, the model without the adapter.
    """
    if not kept:
        return Answers(math.nan, math.nan)
    candidate = Candidate(model.name, str(model), adapter=str(adapter or ""))
    alone = replace(candidate, adapter="")
    size = SEEN_AT_ONCE if any(example.media for example in kept) else len(kept)
    parts = [kept[start : start + size] for start in range(0, len(kept), size)]
    loss = right = 0.0
    for part in reporter.track(parts, stage, len(parts)) if len(parts) > 1 else parts:
        (found,) = compare(
            Candidate("16 bit", str(reference), dtype=reference_dtype(device)) if reference else alone,
            [candidate],
            Probe.of([example.sample() for example in part]),
            device=str(device),
            reporter=reporter,
            stage=stage,
            scratch=scratch,
        )
        loss += math.log(found.perplexity) * sum(example.n_labels for example in part)
        right += found.right * len(part)
    return Answers(loss / sum(example.n_labels for example in kept), right / len(kept))


def unlike(before: Answers, trained: Answers, written: Answers) -> str:
    """What to say where ``written``, of files by their program, keeps too little of what was gained in memory; or nothing."""
    lost = math.isfinite(trained.loss) and not math.isfinite(written.loss)
    if not (lost or written.share_of(before, trained) < LEAST_KEPT):
        return ""
    one, other = (f"{answers.loss:.3f} nats and {answers.right:.0%} right" for answers in (trained, written))
    return f"note: what was trained was written, and yet it answers otherwise: {one} in memory, {other} by its program"
