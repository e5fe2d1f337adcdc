"""Talking with a model in its own runtime: an answer word by word, how fast it came, and what the model takes in memory."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitwright.data.chat_template import Conversation, TemplateFailedError, render_with
from bitwright.data.plain import plain
from bitwright.data.samples import Sample
from bitwright.data.tokenizer import bos_prefix, token_ids
from bitwright.evaluate.evaluate import Candidate
from bitwright.host.heap import resident_nbytes
from bitwright.runtimes.base import Loaded
from bitwright.runtimes.registry import load

QUESTIONS = (  # asked where nobody asks anything: facts, a sum, instructions, an opinion
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Name three animals that can fly.",
    "Why is the sky blue?",
)
UNFINISHED = "\ufffd"  # at the end of a text: the first bytes of a letter
Message = dict[str, str]


@dataclass(frozen=True)
class Reply:
    """Tokens that a model wrote, as ids and text, and the seconds that took."""

    ids: tuple[int, ...]
    text: str
    seconds: float


class Talker:
    """A model that is talked with. ``nbytes``: what loading it added to this process's memory."""

    def __init__(self, path: Path, tokenizer: Any, longest: int, device: str = "cpu") -> None:
        before = resident_nbytes()
        self.tokenizer, self.longest = tokenizer, longest
        with redirect_stderr(io.StringIO()):  # progress bars of libraries
            self.loaded: Loaded = load(asdict(Candidate(path.name, str(path))), device, longest)
        self.nbytes = max(0, resident_nbytes() - before)
        self._spent = self._written = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of all replies so far, reading the question included."""
        return self._written / self._spent if self._spent else 0.0

    def reply(
        self,
        messages: Sequence[Message],
        count: int,
        tell: Callable[[str, int], None] = lambda text, token: None,
        temperature: float = 0.0,
    ) -> Reply:
        """Up to ``count`` tokens that answer the last of ``messages``. ``tell`` is called with each token's
        piece of text and its id; ``temperature`` 0: always the likeliest."""
        prompt = prompt_of(messages, self.tokenizer, self.longest - count)
        found: list[int] = []
        told = ""

        def note(token: int) -> None:
            nonlocal told
            found.append(token)
            text = self.tokenizer.decode(found, skip_special_tokens=True)
            whole = not text.endswith(UNFINISHED)
            tell(text[len(told) :] if whole else "", token)
            told = text if whole else told

        begin = time.perf_counter()
        self.loaded.answer(prompt, count, note, temperature)
        seconds = time.perf_counter() - begin
        self._spent, self._written = self._spent + seconds, self._written + len(found)
        return Reply(tuple(found), self.tokenizer.decode(found, skip_special_tokens=True).strip(), seconds)


def prompt_of(messages: Sequence[Message], tokenizer: Any, longest: int) -> Sample:
    """``messages`` through the chat template, or as ``finetune`` writes them where there is none.

    Where they are more than ``longest`` tokens, the oldest of them are left out, but for what the system says; of a last
    message that is too long by itself the beginning is, but for BOS.
    """
    ids = _ids(messages, tokenizer)
    while len(ids) > longest and (older := _without_oldest(messages)):
        messages = older
        ids = _ids(messages, tokenizer)
    if len(ids) > longest:
        begin = ids[:1] if ids[0] == tokenizer.bos_token_id else []
        ids = begin + ids[len(ids) - longest + len(begin) :]
    return Sample.of(ids)


def _without_oldest(messages: Sequence[Message]) -> list[Message]:
    """``messages`` without the first question and its answer; empty where that leaves no question."""
    said = [message for message in messages if message["role"] == "system"]
    talk = [message for message in messages if message["role"] != "system"]
    return [*said, *talk[2:]] if len(talk) > 2 else []


def _ids(messages: Sequence[Message], tokenizer: Any) -> list[int]:
    try:
        (text,) = render_with(tokenizer, [Conversation([dict(message) for message in messages], prompt=True)])
        return token_ids(tokenizer, text)
    except TemplateFailedError:
        text, _ = plain(messages, tokenizer.eos_token or "")
        return bos_prefix(tokenizer) + token_ids(tokenizer, text)


def same_start(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with.

    >>> same_start([5, 7, 9], [5, 7, 8, 1])
    2
    """
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
