"""A GGUF file of Gemma that does not begin its texts.

Gemma answers at random without its BOS token. llama.cpp puts it there by default; `tokenizer.ggml.add_bos_token` set to
false keeps it out.

Source: https://github.com/ggml-org/llama.cpp/pull/21500; https://github.com/EleutherAI/lm-evaluation-harness/pull/1465.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.checkpoint.gguf_header import GgufHeader
from bitwright.errors import Finding, Severity


def check(header: GgufHeader) -> Iterator[Finding]:
    gemma = str(header.metadata.get("general.architecture")).startswith("gemma")
    if gemma and header.metadata.get("tokenizer.ggml.add_bos_token") is False:
        yield Finding(
            "gguf/gemma-bos",
            "tokenizer.ggml.add_bos_token",
            "false",
            "true, Gemma's texts begin with it",
            "gguf_set_metadata.py FILE tokenizer.ggml.add_bos_token 1",
            Severity.WARNING,
        )
