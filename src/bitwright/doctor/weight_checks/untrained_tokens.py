"""Tokens whose rows were never trained, above all those that the chat template uses.

Reserved and added tokens keep the row that they started with: zeros, next to nothing, or one row for all of them, in
the embedding and in a head of its own. A template that uses such a token shows the model something that it has never
seen, and a fine-tune on it starts from noise. Rows beyond the tokenizer's tokens are padding and do not count.

Source: https://github.com/unslothai/unsloth/issues/416 and the note on untrained tokens of Llama 3 there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bitwright.doctor.conversation import Rendered, render
from bitwright.doctor.model import Model
from bitwright.doctor.statistics import Statistics
from bitwright.errors import Finding, Severity

IN_TEMPLATE = "tokens/untrained-in-template"
SMALL = 0.02  # of the median row; the smallest of SmolLM2-135M has 0.57 of it, of gemma-3-270m 0.997 (2026-11-25)


def check(model: Model, statistics: list[Statistics]) -> Iterator[Finding]:
    names = {id: token for token, id in model.token_ids.items()}
    found = render(model) if model.template is not None and names else None
    written = found.asked + found.answered_tail if isinstance(found, Rendered) else ""
    special = {token["content"] for token in model.added_tokens}
    for part in statistics:
        if part.ref not in (model.embedding, model.head) or not len(part.row_norms) or not names:
            continue
        untrained = {id: how for id, how in _untrained(part, list(names)).items() if names[id]}
        used = [id for id in untrained if names[id] in special and names[id] in written]
        if used:
            yield Finding(
                IN_TEMPLATE,
                part.ref.name,
                f"the template writes {_told(used, names, untrained)}",
                "tokens that were trained",
                "train these rows too, or take the template of the model that was trained",
                Severity.WARNING,
            )
        if untrained:
            ids = list(untrained)
            yield Finding(
                "tokens/untrained",
                part.ref.name,
                f"{len(ids)} tokens, such as {_told(ids, names, untrained)}",
                "tokens that were trained",
                "use other tokens, or train these rows too",
                Severity.NOTE,
            )


def _untrained(part: Statistics, ids: list[int]) -> dict[int, str]:
    """Id -> what is wrong with its row: near zero, or the same row as another token's."""
    held = np.array(sorted(id for id in ids if 0 <= id < len(part.row_norms)), dtype=np.int64)
    if not len(held):
        return {}
    small = part.row_norms[held] <= SMALL * float(np.median(part.row_norms))
    _, inverse, counts = np.unique(part.row_hashes[held], return_inverse=True, return_counts=True)
    alike = (counts[inverse] > 1) & ~small
    words = {int(id): "near zero" for id in held[small]} | {int(id): "a row that others have, too" for id in held[alike]}
    return dict(sorted(words.items()))


def _told(ids: list[int], names: dict[int, str], how: dict[int, str]) -> str:
    return ", ".join(f"{names[id]!r} ({how[id]})" for id in ids[:3])
