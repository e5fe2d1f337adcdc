"""A GGUF file whose settings do not fit the shapes of its tensors.

Width and number of heads are stored as numbers beside the tensors; a converter that was told the wrong ones writes a
file that stops while loading, or computes something else.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.checkpoint.gguf_header import GgufHeader
from bitwright.errors import Finding


def check(header: GgufHeader) -> Iterator[Finding]:
    architecture, metadata = header.metadata.get("general.architecture"), header.metadata
    width, embedding = metadata.get(f"{architecture}.embedding_length"), header.tensors.get("token_embd.weight")
    if isinstance(width, int) and embedding is not None and len(embedding.shape) == 2 and embedding.shape[1] != width:
        yield Finding(
            "gguf/width",
            f"{architecture}.embedding_length",
            f"{width}, token_embd.weight has {embedding.shape[1]} columns",
            "the embedding's width",
            "convert the model again",
        )
    heads, shared = (metadata.get(f"{architecture}.attention.head_count{end}") for end in ("", "_kv"))
    if isinstance(heads, int) and isinstance(shared, int) and shared > 0 and heads % shared:
        yield Finding(
            "gguf/heads",
            f"{architecture}.attention.head_count_kv",
            f"{heads} query heads, {shared} key-value heads",
            "the one a multiple of the other",
            "convert the model again",
        )
