"""Beginning, end and padding tokens whose ids differ between files.

`config.json` and `generation_config.json` name them by id, the tokenizer by text. Where they differ, training marks
one token as the end and generation waits for another.

Source: transformers, where generation_config.json wins over config.json during generation and the tokenizer decides
while training.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.model import Model, ids_of
from bitwright.errors import Finding, Severity

KINDS = ("bos", "eos", "pad")


def check(model: Model) -> Iterator[Finding]:
    rows = model.embedding.shape[0] if model.embedding is not None else None
    for kind in KINDS:
        token = model.token(kind)
        own = model.token_ids.get(token) if token is not None else None
        if token is not None and model.token_ids and own is None:
            yield Finding(
                "tokens/unknown",
                "tokenizer_config.json",
                f"{kind}_token {token!r} is no token of tokenizer.json",
                "a token of the vocabulary",
                f"add {token!r} to the tokenizer or name another {kind}_token",
            )
        for name, settings in (("config.json", model.text_config), ("generation_config.json", model.generation)):
            ids = ids_of(settings.get(f"{kind}_token_id"))
            if rows is not None and any(id >= rows or id < 0 for id in ids):
                yield Finding(
                    "tokens/range", name, f"{kind}_token_id {ids}", f"ids from 0 to {rows - 1}", f"correct {kind}_token_id"
                )
            elif ids and own is not None and own not in ids:
                yield Finding(
                    "tokens/disagree",
                    name,
                    f"{kind}_token_id {ids[0] if len(ids) == 1 else ids}",
                    f"the tokenizer's {kind} token {token!r}, id {own}",
                    f'set "{kind}_token_id": {own}',
                    Severity.WARNING,
                )
