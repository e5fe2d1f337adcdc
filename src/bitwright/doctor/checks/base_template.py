"""A chat template on a model that was never taught to chat.

A base model continues text. Its repository often carries the template of the model that was made from it; whoever
follows it sends tokens that the base model has not learnt, and gets answers that do not end. `--weights` tells which of
the tokens were never trained.

Source: https://github.com/axolotl-ai-cloud/axolotl/issues/2073 (a base model with ChatML that never ends its turn).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from bitwright.doctor.model import Model
from bitwright.errors import Finding, Severity

BASE = re.compile(r"[-_.](base|pt|pretrained|foundation)($|[-_.])")


def check(model: Model) -> Iterator[Finding]:
    if model.template is not None and BASE.search(model.name):
        yield Finding(
            "template/base-model",
            "chat_template",
            f"a chat template, the model is called {model.name}",
            "none on a base model",
            "send plain text, or fine-tune before you chat with it",
            Severity.NOTE,
        )
