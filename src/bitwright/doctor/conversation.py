"""A plain conversation through a model's chat template, as the checks look at it (no torch)."""

from __future__ import annotations

from dataclasses import dataclass

from bitwright.data.chat_template import Conversation, TemplateFailedError
from bitwright.data.chat_template import render as render_all
from bitwright.doctor.model import Model

QUESTION, ANSWER = "What is two and two?", "It is the number four."
ASKED = [{"role": "user", "content": QUESTION}]
CONVERSATIONS = [
    Conversation(ASKED),
    Conversation(ASKED, prompt=True),
    Conversation([*ASKED, {"role": "assistant", "content": ANSWER}]),
]


@dataclass(frozen=True)
class Rendered:
    """A question alone, a question that asks for an answer, and what follows an answer."""

    opened: str
    asked: str
    answered_tail: str


def render(model: Model) -> Rendered | str:
    """The renderings; or what went wrong, in one line."""
    tokens = {f"{kind}_token": model.token(kind) or "" for kind in ("bos", "eos", "pad")}
    try:
        opened, asked, answered = render_all(model.template or "", tokens, CONVERSATIONS)
    except TemplateFailedError as error:
        return str(error)
    if ANSWER not in answered:
        return "it leaves out what is said"
    return Rendered(opened, asked, answered.rpartition(ANSWER)[2])
