"""A chat template that does not work, or that does not ask for an answer.

A template is a program. It must parse and run on a plain conversation; with `add_generation_prompt` it must add what
opens the assistant's turn, or the model goes on writing for the user. A model that is called instruct or chat has
one.

Source: https://huggingface.co/docs/transformers/chat_templating.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.conversation import Rendered, render
from bitwright.doctor.model import Model
from bitwright.errors import Finding, Severity

TALKS = ("instruct", "chat", "-it")


def check(model: Model) -> Iterator[Finding]:
    if model.template is None:
        if any(model.name.endswith(word) or f"{word}-" in model.name for word in TALKS) and model.tokenizer_config:
            yield Finding(
                "template/missing",
                "tokenizer_config.json",
                f"no chat template, the model is called {model.name}",
                "a chat template",
                "copy chat_template.jinja from the original model",
                Severity.WARNING,
            )
        return
    found = render(model)
    if not isinstance(found, Rendered):
        yield Finding(
            "template/broken",
            "chat_template",
            found,
            "a template that runs on a plain conversation",
            "copy chat_template.jinja from the original model",
        )
    elif found.opened == found.asked:
        yield Finding(
            "template/no-generation-prompt",
            "chat_template",
            "add_generation_prompt changes nothing",
            "the beginning of the assistant's turn at the end",
            "end the template with {% if add_generation_prompt %} and what opens an answer",
            Severity.WARNING,
        )
