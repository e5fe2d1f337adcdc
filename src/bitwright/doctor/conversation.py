"""A plain conversation through a model's chat template, in a sandbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bitwright.doctor.model import Model

QUESTION, ANSWER = "What is two and two?", "It is the number four."


@dataclass(frozen=True)
class Rendered:
    """A question alone, a question that asks for an answer, and what follows an answer."""

    opened: str
    asked: str
    answered_tail: str


class RefusedError(Exception):
    """What a template says through ``raise_exception``."""


def render(model: Model) -> Rendered | str:
    """The renderings; or what went wrong, in one line."""
    question = [{"role": "user", "content": QUESTION}]
    try:
        template = _environment().from_string(model.template or "")
        values = {f"{kind}_token": model.token(kind) or "" for kind in ("bos", "eos", "pad")}

        def run(messages: list[dict[str, Any]], prompt: bool) -> str:
            return template.render(messages=messages, add_generation_prompt=prompt, tools=None, documents=None, **values)

        answered = run([*question, {"role": "assistant", "content": ANSWER}], False)
        return Rendered(run(question, False), run(question, True), answered.rpartition(ANSWER)[2])
    except (jinja2.TemplateError, RefusedError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        words = str(error).strip().splitlines()
        return f"{type(error).__name__}: {words[0] if words else ''}"


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers sets it up."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])

    def refuse(message: str) -> NoReturn:
        raise RefusedError(message)

    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: "2026-01-01"
    return environment
