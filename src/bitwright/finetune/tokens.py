"""From conversations to tokens, and which of them carry loss: the answers and what ends them, never the questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bitwright.data.chat_template import Conversation, TemplateFailedError, render_with
from bitwright.data.plain import plain
from bitwright.data.samples import IDS, Sample
from bitwright.errors import fail
from bitwright.finetune.conversations import Talk

IGNORED = -100  # label of a token without loss, as everywhere in transformers
AT_ONCE = 64  # conversations that the process of the template is given


@dataclass(frozen=True)
class Example:
    """One text. ``labels``: at each place the token that has to follow, or IGNORED."""

    ids: Tensor  # int64 [T]
    labels: Tensor  # int64 [T]
    n_cut: int  # tokens that did not fit
    row: int  # in the file, from one
    more: dict[str, Tensor] = field(default_factory=dict)  # what else a class that sees takes of each token, [T]
    media: Callable[[], dict[str, Tensor]] | None = None  # pixels and what goes with them, made when they are asked for
    digest: str = ""  # of all that is shown, where media are

    @property
    def key(self) -> tuple[object, ...]:
        """The same for two examples only if they are."""
        return (*self.ids.tolist(), None, *self.labels.tolist(), self.digest)

    @property
    def n_labels(self) -> int:
        return int((self.labels != IGNORED).sum())

    def sample(self) -> Sample:
        """The same for an evaluation: the answer is what is scored."""
        return Sample({IDS: self.ids, **self.more}, self.labels != IGNORED, self.media() if self.media else {})


def examples(talks: Sequence[Talk], tokenizer: Any, length: int) -> list[Example]:
    """Each of ``talks`` as tokens, at most ``length``.

    Through the model's chat template where it has one; otherwise question, a line's end, answer and the end of text. Raises
    BitwrightError for a template that fails or writes an earlier turn anew once there is a later one.
    """
    texts = _rendered([talk for talk in talks if talk.messages], tokenizer)
    found = []
    for talk in talks:
        text, spans = next(texts) if talk.messages else (talk.text + _end(tokenizer), None)
        found.append(
            _example(text, spans, tokenizer, length, talk.row, templated=bool(talk.messages) and _has_template(tokenizer))
        )
    return found


def _example(text: str, spans: list[tuple[int, int]] | None, tokenizer: Any, length: int, row: int, templated: bool) -> Example:
    read = tokenizer(text, add_special_tokens=not templated, return_offsets_mapping=True)
    ids = torch.tensor(read["input_ids"], dtype=torch.long)
    learnt = torch.ones(len(ids), dtype=torch.bool)
    if spans is not None:
        starts = torch.tensor([start for start, _ in read["offset_mapping"]], dtype=torch.long)
        ends = torch.tensor([end for _, end in read["offset_mapping"]], dtype=torch.long)
        learnt = torch.zeros(len(ids), dtype=torch.bool)
        for begin, stop in spans:
            learnt |= (ends > begin) & (starts < stop) & (starts >= begin)
    labels = torch.full_like(ids, IGNORED)
    labels[:-1] = torch.where(learnt[1:], ids[1:], IGNORED)  # the first token of a text follows nothing
    labels[length - 1 :] = IGNORED  # nothing follows what is cut off
    return Example(ids[:length], labels[:length], max(0, len(ids) - length), row)


def _rendered(talks: Sequence[Talk], tokenizer: Any) -> Any:
    """Text and spans of the answers of each talk, in order."""
    if not _has_template(tokenizer):
        yield from (plain(talk.messages, _end(tokenizer)) for talk in talks)
        return
    for first in range(0, len(talks), AT_ONCE):
        asked: list[Conversation] = []
        for talk in talks[first : first + AT_ONCE]:
            for at in _answers(talk):
                asked.append(Conversation(list(talk.messages[:at]), prompt=True))
                asked.append(Conversation(list(talk.messages[: at + 1])))
            asked.append(Conversation(list(talk.messages)))
        try:
            texts = iter(render_with(tokenizer, asked))
        except TemplateFailedError as error:
            raise fail(
                "finetune/template",
                "chat template",
                saw=str(error),
                wanted="a template that renders the conversations",
                help="bitwright doctor MODEL says more",
            ) from None
        for talk in talks[first : first + AT_ONCE]:
            pairs = [(next(texts), next(texts)) for _ in _answers(talk)]
            whole = next(texts)
            for before, after in pairs:
                if not (after.startswith(before) and whole.startswith(after.rstrip())):
                    raise fail(
                        "finetune/template-rewrites",
                        f"row {talk.row}",
                        saw="the template writes an earlier turn otherwise once a later one follows",
                        wanted="a template under which the start of a conversation stays as it is",
                        help="train on single turns, or give another template to the tokenizer",
                    )
            yield whole, [(len(before), min(len(after), len(whole))) for before, after in pairs]


def _answers(talk: Talk) -> list[int]:
    return [i for i, message in enumerate(talk.messages) if message["role"] == "assistant"]


def _has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def _end(tokenizer: Any) -> str:
    return str(tokenizer.eos_token or "")
