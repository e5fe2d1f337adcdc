"""A GGUF file that does not say how to split a text before it is tokenized.

Vocabularies of bytes (`tokenizer.ggml.model` gpt2) need `tokenizer.ggml.pre`. Where it is missing, llama.cpp warns and
splits in a default way, and digits and words become other tokens than those the model knows. Files of Llama 3 from
before May 2024 are like that.

Source: https://github.com/ggml-org/llama.cpp/pull/6920 and /issues/7724; https://github.com/microsoft/BitNet/pull/508.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.checkpoint.gguf_header import GgufHeader
from bitwright.errors import Finding, Severity

LLAMA3 = {128_000: "<|begin_of_text|>", 128_009: "<|eot_id|>"}
LLAMA3_SPLITS = ("llama-bpe", "llama3", "llama-v3")


def check(header: GgufHeader) -> Iterator[Finding]:
    if header.metadata.get("tokenizer.ggml.model") != "gpt2":
        return
    split, tokens = header.metadata.get("tokenizer.ggml.pre"), header.metadata.get("tokenizer.ggml.tokens")
    llama3 = isinstance(tokens, list) and all(id < len(tokens) and tokens[id] == text for id, text in LLAMA3.items())
    if llama3 and split not in LLAMA3_SPLITS and split != "smaug-bpe":  # which splits in the same way
        yield Finding(
            "gguf/pre-tokenizer",
            "tokenizer.ggml.pre",
            repr(split),
            "llama-bpe, the vocabulary is that of Llama 3",
            "gguf_new_metadata.py --pre-tokenizer llama-bpe IN OUT",
        )
    elif not split:
        yield Finding(
            "gguf/pre-tokenizer",
            "tokenizer.ggml.pre",
            "missing",
            "the name of how this vocabulary splits a text",
            "convert the model again with a current llama.cpp",
            Severity.WARNING,
        )
