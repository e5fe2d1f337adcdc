"""Tokens whose rows were never trained, above all those that the chat template uses.

Reserved and added tokens keep the row that they started with: zeros, or next to nothing. A template that uses such a
token shows the model something that it has never seen, and a fine-tune on it starts from noise.

Source: https://github.com/unslothai/unsloth/issues/416 and the note on untrained tokens of Llama 3 there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bitwright.doctor.conversation import Rendered, render
from bitwright.doctor.model import Model
from bitwright.doctor.statistics import Statistics
from bitwright.errors import Finding

SMALL = 0.02  # of the median row; the smallest of SmolLM2-135M has 0.57 of it, of gemma-3-270m 0.997 (2026-11-25)


def check(model: Model, statistics: list[Statistics]) -> Iterator[Finding]:
    ref = model.embedding
    norms = next((s.row_norms for s in statistics if ref is not None and s.ref.name == ref.name), None)
    if ref is None or norms is None or not len(norms) or not model.token_ids:
        return
    usual = float(np.median(norms))
    rows = [int(row) for row in np.flatnonzero(norms <= SMALL * usual)]
    names = {id: token for token, id in model.token_ids.items()}
    untrained = [names[row] for row in rows if row in names]
    found = render(model) if model.template is not None else None
    written = found.asked + found.answered_tail if isinstance(found, Rendered) else ""
    special = {token["content"] for token in model.added_tokens}
    used = [token for token in untrained if token and token in special and token in written]
    if used:
        yield Finding(
            "tokens/untrained-in-template", ref.name, f"the template writes {', '.join(map(repr, used[:5]))}, near zero",
            "tokens that were trained", "train these rows too, or take the template of the model that was trained", "warning",
        )  # fmt: skip
    if untrained:
        yield Finding(
            "tokens/untrained", ref.name, f"{len(untrained)} tokens near zero, such as {', '.join(map(repr, untrained[:3]))}",
            "tokens that were trained", "use other tokens, or train these rows too", "note",
        )  # fmt: skip
