"""A GGUF file whose tokenizer and embedding disagree.

Tokens, their types and scores are arrays of one length, the embedding has a row for each, and beginning, end and
padding are among them.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.checkpoint.gguf_header import GgufHeader
from bitwright.errors import Finding, Severity

IDS = ("bos", "eos", "padding", "unknown", "eot")


def check(header: GgufHeader) -> Iterator[Finding]:
    tokens, embedding = header.metadata.get("tokenizer.ggml.tokens"), header.tensors.get("token_embd.weight")
    count = len(tokens) if isinstance(tokens, list) else None
    rows = embedding.shape[0] if embedding is not None and len(embedding.shape) == 2 else None
    if count is not None and rows is not None and count > rows:
        yield Finding(
            "gguf/vocabulary",
            "tokenizer.ggml.tokens",
            f"{count} tokens, token_embd.weight has {rows} rows",
            "a row for every token",
            "convert the model again",
        )
    for name in ("token_type", "scores"):
        values = header.metadata.get(f"tokenizer.ggml.{name}")
        if count is not None and values is not None and hasattr(values, "__len__") and len(values) != count:
            yield Finding(
                "gguf/token-arrays",
                f"tokenizer.ggml.{name}",
                f"{len(values)} entries, {count} tokens",
                "one for each token",
                "convert the model again",
            )
    for name in IDS:
        id = header.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(id, int) and count is not None and not 0 <= id < count:
            yield Finding(
                "gguf/token-range",
                f"tokenizer.ggml.{name}_token_id",
                str(id),
                f"an id from 0 to {count - 1}",
                f"gguf_set_metadata.py FILE tokenizer.ggml.{name}_token_id ID",
            )
    end, pad = (header.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "padding"))
    if end is not None and end == pad:
        yield Finding(
            "gguf/padding-is-end",
            "tokenizer.ggml.padding_token_id",
            f"{pad}, which is the end",
            "a token of its own",
            "nothing while the file is only run; fine-tune from a model with another padding token",
            Severity.NOTE,
        )
