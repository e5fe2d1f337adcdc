"""Text that the model writes itself, from openings of our own: calibration without any data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache

from bitwright.data.chat_template import Conversation, TemplateFailedError, render_with
from bitwright.data.draw import draw
from bitwright.data.openings import openings
from bitwright.data.tokenizer import bos_prefix, token_ids
from bitwright.errors import fail
from bitwright.host.progress import Reporter
from bitwright.host.schedule import WRITE_TEXT

GENERATION_BATCH = 128
PAGE = 128  # tokens of a text: two in a sequence of 256 are written side by side in half the time of a longer one
LEAST_LENGTH = 16  # tokens of a sequence: below that nothing is written between an opening and the end


@torch.no_grad()
def write_itself(model: Any, tokenizer: Any, count: int, length: int, seed: int, reporter: Reporter) -> Tensor:
    """``count`` sequences int64 [count, length] that ``model`` (resident, any device) writes at temperature 1.

    A sequence of ``length`` tokens holds texts of PAGE tokens, where it can be divided into them. Each begins with an opening
    of ours, up to half of its length; where the tokenizer has a chat template, questions are asked through it. A text that
    the model ends is followed by the next opening. Other special tokens are never drawn.
    """
    n_pages = length // PAGE if length % PAGE == 0 else 1
    return _texts(model, tokenizer, count * n_pages, length // n_pages, seed, reporter).reshape(count, length)


def _texts(model: Any, tokenizer: Any, count: int, length: int, seed: int, reporter: Reporter) -> Tensor:
    """``count`` texts int64 [count, length]."""
    prompts = _prompts(tokenizer, length)
    ends = _end_tokens(model, tokenizer)
    banned = torch.tensor(sorted(set(tokenizer.all_special_ids) - ends), dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    turn = cycle(prompts)
    written = []
    sizes = [min(GENERATION_BATCH, count - start) for start in range(0, count, GENERATION_BATCH)]
    ticks = reporter.track(range(length * len(sizes)), WRITE_TEXT, length * len(sizes))
    steps = iter(ticks)
    for size in sizes:
        pages = _Pages.open(size, length, turn, ends)
        _write(model, pages, banned, generator, steps)
        written.append(pages.ids)
    next(steps, None)
    return torch.cat(written)


def _prompts(tokenizer: Any, length: int) -> list[list[int]]:
    """The openings as tokens. Raises BitwrightError where there is no room for them or the tokenizer reads nothing."""
    bos = bos_prefix(tokenizer)
    texts = openings()
    asked = iter(_asked([text for text, is_question in texts if is_question], tokenizer))
    found = []
    for text, is_question in texts:
        ids = next(asked) if is_question else bos + token_ids(tokenizer, text)
        found.append(ids[: length // 2])
    found = [ids for ids in found if len(ids) > len(bos)]
    if not found or length < LEAST_LENGTH:
        raise fail(
            "calibration/self",
            "--calibration self",
            saw=f"{len(found)} openings, sequences of {length} tokens",
            wanted=f"a tokenizer that reads text, and sequences of {LEAST_LENGTH} tokens or more",
            help="--calibration documentation",
        )
    return found


def _asked(questions: list[str], tokenizer: Any) -> list[list[int]]:
    """The tokens of each question, up to where the answer begins."""
    try:
        asked = render_with(tokenizer, [Conversation([{"role": "user", "content": one}], prompt=True) for one in questions])
        return [token_ids(tokenizer, text) for text in asked]
    except TemplateFailedError:  # no template, or one that fails: the doctor says what is wrong
        bos, plain = bos_prefix(tokenizer), [f"Question: {question}\nAnswer:" for question in questions]
        return [bos + token_ids(tokenizer, text) for text in plain]


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Tokens with which the model ends a text or a turn."""
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = stated if isinstance(stated, list) else [stated]
    return {end for end in (*listed, tokenizer.eos_token_id) if isinstance(end, int)}


@dataclass
class _Pages:
    """Sequences that are being written, what has to come where, and the openings that follow texts which end."""

    ids: Tensor  # int64 [B, T]
    given: Tensor  # int64 [B, T]: tokens of openings, -1 where the model writes
    turn: Iterator[list[int]]
    ends: set[int]

    @classmethod
    def open(cls, count: int, length: int, turn: Iterator[list[int]], ends: set[int]) -> _Pages:
        pages = cls(torch.zeros(count, length, dtype=torch.long), torch.full((count, length), -1), turn, ends)
        for row in range(count):
            pages._begin(row, 0)
        pages.ids[:, 0] = pages.given[:, 0]
        return pages

    def put(self, at: int, drawn: Tensor) -> None:
        """Write position ``at``: the token of an opening, else the one that was ``drawn`` [B]."""
        free = self.given[:, at] < 0
        self.ids[:, at] = torch.where(free, drawn, self.given[:, at])
        for row in free.nonzero()[:, 0].tolist():
            if int(drawn[row]) in self.ends:
                self._begin(row, at + 1)

    def _begin(self, row: int, at: int) -> None:
        opening = next(self.turn)[: self.ids.shape[1] - at]
        self.given[row, at : at + len(opening)] = torch.tensor(opening, dtype=torch.long)


def _write(model: Any, pages: _Pages, banned: Tensor, generator: torch.Generator, steps: Iterator[int]) -> None:
    """Fill ``pages`` token by token. The cache has its whole length from the start: a growing one is copied at every step."""
    device, length = next(model.parameters()).device, pages.ids.shape[1]
    past = StaticCache(config=model.config, max_cache_len=length)
    for at in range(1, length):
        next(steps)
        step = pages.ids[:, at - 1 : at].to(device)
        logits = model(step, past_key_values=past, use_cache=True, logits_to_keep=1).logits[:, -1].float().cpu()
        logits[:, banned[banned < logits.shape[1]]] = -torch.inf
        pages.put(at, draw(logits, torch.rand(len(logits), 1, generator=generator))[:, 0])
