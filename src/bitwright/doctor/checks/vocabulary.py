"""Tokenizer, embedding and configuration that disagree on the number of tokens.

A token id beyond the last row of the embedding stops a model in the middle of a text, or reads foreign memory on some
accelerators. More rows than tokens are usual (rows are padded to a multiple of 64 or 128) and no finding. A special token
that no text and no template produces is a note: Gemma 3 without eyes has that of an image.

Source: https://huggingface.co/docs/transformers, `resize_token_embeddings`, which a fine-tune that adds tokens must call.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.model import Model
from bitwright.errors import Finding, Severity

ROWS_FOR_IMAGES = {"mllama_text_model": 8}  # of the embedding, beyond vocab_size


def check(model: Model) -> Iterator[Finding]:
    embedding, stated = model.embedding, model.text_config.get("vocab_size")
    if embedding is None or model.quantization is not None:
        return
    rows = embedding.shape[0]
    if isinstance(stated, int) and stated != rows - ROWS_FOR_IMAGES.get(str(model.text_config.get("model_type")), 0):
        yield Finding(
            "vocabulary/config",
            "config.json",
            f"vocab_size {stated}, {embedding.name} has {rows} rows",
            "vocab_size is the number of rows",
            f'set "vocab_size": {rows}',
        )
    if model.token_ids and (last := max(model.token_ids.items(), key=lambda item: item[1]))[1] >= rows:
        special = {token["id"] for token in model.added_tokens if token.get("special")}
        spoken = [id for id in model.token_ids.values() if id >= rows and id not in special]
        yield Finding(
            "vocabulary/tokenizer",
            "tokenizer.json",
            f"token {last[0]!r} has id {last[1]}, {embedding.name} has {rows} rows",
            "every token has a row",
            "model.resize_token_embeddings(len(tokenizer)) and save again",
            Severity.ERROR if spoken or last[0] in (model.template or "") else Severity.NOTE,  # no text produces it
        )
    head = model.head
    if head is not None and len(head.shape) == 2 and head.shape[0] not in (rows, stated):
        yield Finding(
            "vocabulary/head",
            head.name,
            f"{head.shape[0]} rows, {embedding.name} has {rows}",
            "as many rows as the embedding",
            "resize both together and save again",
        )
