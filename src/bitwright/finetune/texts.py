"""The examples of a file, those to learn from and those that are kept apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bitwright.checkpoint.workdir import content_hash
from bitwright.errors import fail
from bitwright.finetune.conversations import conversations
from bitwright.finetune.model import ends_of
from bitwright.finetune.preview import require_no_mistake, summary
from bitwright.finetune.tables import read_table
from bitwright.finetune.tokens import Example, examples
from bitwright.finetune.training import Training


@dataclass(frozen=True)
class Texts:
    """All examples, those to learn from and those that are kept apart, and how the columns were read."""

    every: list[Example]
    learnt: list[Example]
    kept: list[Example]
    words: str
    n_doubles: int  # rows of the kept texts that were among the others, and were left out there

    def key(self) -> str:
        """Hash of what is learnt."""
        return content_hash([example.ids.tolist() + example.labels.tolist() for example in self.learnt])


def texts_of(data: str, tokenizer: Any, training: Training) -> Texts:
    """Read ``data`` and cut it by rows, the same way for the same seed; doubles across the cut stay on one side."""
    talks, words = conversations(read_table(data, training.sheet), training.template, training.answer, training.rows_together)
    found = examples(talks, tokenizer, training.length)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(training.seed)).tolist()
    n_kept = min(len(found) - 1, max(1, math.ceil(training.held_out * len(found)))) if training.held_out else 0
    kept = [found[i] for i in order[:n_kept] if found[i].n_labels]
    known = {tuple(example.ids.tolist()) for example in kept}
    rest = [found[i] for i in order[n_kept:]]
    learnt = [example for example in rest if example.n_labels and tuple(example.ids.tolist()) not in known]
    doubles = sum(tuple(example.ids.tolist()) in known for example in rest)
    return Texts(found, learnt, kept, words, doubles)


def require_sound(texts: Texts, path: Path, tokenizer: Any, length: int) -> None:
    """Raise BitwrightError for examples that nothing can be learnt from by the model at ``path``."""
    require_no_mistake(texts.every, tokenizer, ends_of(path, tokenizer), length)
    if not texts.learnt:
        raise fail(
            "finetune/all-kept",
            "the examples",
            saw=f"none is left to learn from: {texts.n_doubles} are equal to texts that are kept apart",
            wanted="different texts",
            help="--held-out 0, or more rows",
        )


def told_of(texts: Texts, training: Training) -> list[str]:
    """What a person should know of the examples before they are learnt."""
    lines = [f"read as {texts.words}", *summary(texts.every, training.length)]
    if texts.n_doubles:
        lines.append(f"{texts.n_doubles} texts are equal to kept ones and are not learnt from")
    return lines
