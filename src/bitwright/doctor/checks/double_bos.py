"""Two beginnings: the chat template writes the BOS token, and the tokenizer adds another.

Whoever renders the template to text and tokenizes that with default settings gives the model two of them, and answers get
worse.

Source: https://github.com/deepseek-ai/DeepSeek-R1/issues/151, https://github.com/vllm-project/vllm/pull/27515.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.conversation import Rendered, render
from bitwright.doctor.model import Model
from bitwright.errors import Finding, Severity


def check(model: Model) -> Iterator[Finding]:
    bos = model.token("bos")
    found = render(model) if model.template is not None and bos else None
    if bos and isinstance(found, Rendered) and found.asked.lstrip().startswith(bos) and model.adds(bos):
        yield Finding(
            "template/double-bos",
            "chat_template",
            f"it writes {bos!r}, and the tokenizer adds it too",
            "one of the two",
            "tokenize rendered conversations with add_special_tokens=False",
            Severity.NOTE if _usual(model) else Severity.WARNING,
        )


def _usual(model: Model) -> bool:
    """Families in which both are meant, because plain text needs the token as well."""
    return str(model.config.get("model_type", "")).startswith(("gemma", "llama"))
