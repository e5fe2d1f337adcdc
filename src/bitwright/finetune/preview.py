"""What training would see, before it begins: which tokens carry loss, and the silent mistakes that make it worthless."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.text import Text

from bitwright.errors import fail, printable
from bitwright.finetune.tokens import IGNORED, Example

MOST_CUT = 0.5  # share of texts that lose their end
MOST_ALIKE = 8  # tokens in a row that are shown one by one
LEARNT, GIVEN = "bold green", "dim"


def summary(examples: Sequence[Example], length: int) -> list[str]:
    """The figures of all examples in a few lines."""
    tokens, labels = sum(len(e.ids) for e in examples), sum(e.n_labels for e in examples)
    cut, empty = sum(e.n_cut > 0 for e in examples), sum(e.n_labels == 0 for e in examples)
    lines = [
        f"{len(examples)} texts, {tokens:,} tokens, of which {labels:,} carry loss ({100 * labels / max(1, tokens):.0f} %)"
    ]
    if cut:
        lines.append(
            f"{cut} texts are cut at {length} tokens: --length {max(len(e.ids) + e.n_cut for e in examples)} keeps all"
        )
    if empty:
        lines.append(f"{empty} texts carry no loss: {', '.join(f'row {e.row}' for e in examples if not e.n_labels)[:200]}")
    return lines


def coloured(example: Example, tokenizer: Any, brackets: bool = False) -> Text:
    """The text of ``example``; what carries loss is in another colour, or with ``brackets`` also in « »."""
    learnt = [False, *(int(label) != IGNORED for label in example.labels[:-1])]
    shown = Text()
    for carries, run in groupby(zip(learnt, example.ids.tolist(), strict=True), key=lambda pair: pair[0]):
        words = _words([token for _, token in run], tokenizer)
        shown.append(f"«{words}»" if carries and brackets else words, style=LEARNT if carries else GIVEN)
    return shown


def _words(ids: list[int], tokenizer: Any) -> str:
    """The text of ``ids``, decoded together since a letter may be several tokens; the places of an image are counted."""
    words, pending = "", list[int]()
    for token, run in groupby(ids):
        alike = list(run)
        if len(alike) < MOST_ALIKE:
            pending += alike
            continue
        words += printable(tokenizer.decode(pending)) + printable(tokenizer.decode([token])) + f" x {len(alike)} "
        pending = []
    return words + printable(tokenizer.decode(pending))


def require_no_mistake(examples: Sequence[Example], tokenizer: Any, ends: set[int], length: int) -> None:
    """Raise BitwrightError for the mistakes that nobody notices while a loss falls."""
    if len(examples) < 2:
        raise _mistake("one-row", f"{len(examples)} text", "at least two texts, one to learn from and one held out", "add rows")
    if not any(e.n_labels for e in examples):
        raise _mistake(
            "nothing-learnt",
            "no token carries loss",
            "answers of the assistant within the length",
            f"--length {2 * length}, or another --answer",
        )
    if not ends:
        raise _mistake(
            "no-end",
            "neither the tokenizer nor generation_config.json names a token that ends a text",
            "a token after which the model stops",
            "bitwright doctor MODEL, or eos_token in tokenizer_config.json",
        )
    whole = [e for e in examples if not e.n_cut and e.n_labels]
    if whole and not any(set(e.labels.tolist()) & ends for e in whole):
        raise _mistake(
            "end-never-trained",
            "no answer ends with a token that ends a turn",
            f"one of {', '.join(repr(tokenizer.decode([end])) for end in sorted(ends))} after each answer",
            "bitwright doctor MODEL: its template or its generation_config.json is at odds with its tokenizer",
        )
    bos = tokenizer.bos_token_id
    if bos is not None and any(e.ids[:2].tolist() == [bos, bos] for e in examples):
        raise _mistake("double-bos", "texts begin with two BOS tokens", "one", "bitwright doctor MODEL --explain: double_bos")
    if sum(e.n_cut > 0 for e in examples) > MOST_CUT * len(examples):
        needed = max(len(e.ids) + e.n_cut for e in examples)
        raise _mistake(
            "most-are-cut", f"more than half of the texts do not fit into {length} tokens", "whole texts", f"--length {needed}"
        )


def require_room(examples: Sequence[Example], config: Any) -> None:
    """Raise BitwrightError for tokens, and positions, that the model of ``config`` has no numbers for."""
    most, positions = config.vocab_size, getattr(config, "max_position_embeddings", None)
    strange = next((e for e in examples if len(e.ids) and int(e.ids.max()) >= most), None)
    if strange is not None:
        saw = f"row {strange.row}: token {int(strange.ids.max())}, where the model has {most} tokens"
        raise _mistake("unknown-token", saw, "the tokenizer that belongs to the model", "bitwright doctor MODEL")
    longest = max(len(e.ids) for e in examples)
    if positions and longest > positions:
        saw = f"texts of {longest} tokens, where the model has {positions} positions"
        raise _mistake("too-long", saw, "texts that fit", f"--length {positions}")


def _mistake(name: str, saw: str, wanted: str, help: str) -> Exception:
    return fail(f"finetune/{name}", "the examples", saw=saw, wanted=wanted, help=help)
