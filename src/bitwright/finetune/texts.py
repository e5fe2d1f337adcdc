"""The examples of a file, those to learn from and those that are kept apart."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from bitwright.checkpoint.workdir import content_hash
from bitwright.data.rows import has_image
from bitwright.data.viewer import viewer_of
from bitwright.doctor.doctor import examine_for_training, in_lines
from bitwright.doctor.weight_checks.untrained_tokens import IN_TEMPLATE
from bitwright.errors import BitwrightError, fail
from bitwright.finetune.conversations import Talk, conversations
from bitwright.finetune.model import ends_of
from bitwright.finetune.pictures import example_of
from bitwright.finetune.preview import require_no_mistake, require_room, summary
from bitwright.finetune.rows import Row
from bitwright.finetune.tables import read_table
from bitwright.finetune.tokens import Example, examples
from bitwright.finetune.training import Training

MOST_NAMED = 12  # rows


@dataclass(frozen=True)
class Texts:
    """All examples, those to learn from and those that are kept apart, and how the columns were read."""

    every: list[Example]
    learnt: list[Example]
    kept: list[Example]
    words: str
    doubles: tuple[int, ...]  # rows of texts that are equal to kept ones, and are not learnt from
    templated: bool  # whether the chat template writes any of them

    def key(self) -> str:
        """Hash of what is learnt."""
        return content_hash([example.key for example in self.learnt])

    @property
    def pictured(self) -> bool:
        """Whether any of them has images."""
        return any(example.media for example in self.every)


def texts_of(data: str, path: Path, tokenizer: Any, training: Training) -> Texts:
    """Read ``data`` for the model at ``path`` and cut it by rows, the same way for the same seed.

    Doubles across the cut stay on one side.
    """
    rows = read_table(data, training.sheet)
    talks, words = conversations(rows, training.template, training.answer, training.rows_together)
    asked = any(talk.messages for talk in talks)
    if asked and not tokenizer.chat_template:
        words += "; without a chat template: the question, the end of a line, the answer"
    found = _examples(data, rows, talks, path, tokenizer, training)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(training.seed)).tolist()
    n_kept = min(len(found) - 1, max(1, math.ceil(training.held_out * len(found)))) if training.held_out else 0
    kept = [found[i] for i in order[:n_kept] if found[i].n_labels]
    known = {example.key for example in kept}
    rest = [found[i] for i in order[n_kept:]]
    learnt = [example for example in rest if example.n_labels and example.key not in known]
    doubles = tuple(sorted(example.row for example in rest if example.key in known))
    return Texts(found, learnt, kept, words, doubles, asked and bool(tokenizer.chat_template))


def _examples(data: str, rows: list[Row], talks: list[Talk], path: Path, tokenizer: Any, training: Training) -> list[Example]:
    """An example for each talk, in their order; those whose rows have images are shown by the model's own processor."""
    pictured = [talk for talk in talks if has_image(rows[talk.at])]
    if not pictured:
        return examples(talks, tokenizer, training.length)
    if training.rows_together > 1:
        raise fail("finetune/turns", "--rows-together", saw="rows with images", wanted="a row each", help="--rows-together 1")
    viewer, why = viewer_of(path, AutoConfig.from_pretrained(path).to_dict(), tokenizer)
    if viewer is None:
        raise fail(
            "finetune/images",
            data,
            saw=f"{len(pictured)} rows with images; {why or 'the model reads text alone'}",
            wanted="a model that sees, with its processor",
            help="name such a model, or remove the column with images",
        )
    place = Path(os.path.expanduser(data))
    known, folder = sorted(ends_of(path, tokenizer)), place if place.is_dir() else place.parent
    end = tokenizer.eos_token_id if tokenizer.eos_token_id in known or not known else known[0]
    texts = iter(examples([talk for talk in talks if not has_image(rows[talk.at])], tokenizer, training.length))
    return [
        example_of(talk, rows[talk.at], folder, viewer, end, training.length) if has_image(rows[talk.at]) else next(texts)
        for talk in talks
    ]


def require_sound(texts: Texts, path: Path, tokenizer: Any, length: int) -> None:
    """Raise BitwrightError for examples that nothing can be learnt from by the model at ``path``."""
    require_no_mistake(texts.every, tokenizer, ends_of(path, tokenizer), length)
    require_room(texts.every, AutoConfig.from_pretrained(path).get_text_config())
    untrained = next((finding for finding in examine_for_training(path) if finding.rule == IN_TEMPLATE), None)
    if untrained and texts.templated:  # rows of the embedding stay as they are: nothing that is trained here could mend it
        raise BitwrightError(untrained)
    if not texts.learnt:
        raise fail(
            "finetune/all-kept",
            "the examples",
            saw=f"none is left to learn from: {_rows(texts.doubles)} are equal to texts that are kept apart",
            wanted="different texts",
            help="--held-out 0, or more rows",
        )


def told_of(texts: Texts, training: Training, path: Path) -> list[str]:
    """What a person should know of the examples, and of the model at ``path``, before anything is learnt."""
    lines = [f"note: {line}" for line in in_lines(examine_for_training(path))]
    lines += [f"read as {texts.words}", *summary(texts.every, training.length)]
    if texts.doubles:
        lines.append(f"{len(texts.doubles)} texts are equal to kept ones and are not learnt from: {_rows(texts.doubles)}")
    return lines


def _rows(numbers: tuple[int, ...]) -> str:
    shown = [str(number) for number in numbers[:MOST_NAMED]]
    return "rows " + ", ".join(shown) + (f" and {len(numbers) - MOST_NAMED} more" if len(numbers) > MOST_NAMED else "")
