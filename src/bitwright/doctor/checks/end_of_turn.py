"""Generation that does not stop where the chat template ends a turn.

Models end an answer with the token that the template puts there, often another one than the end of a text. Where
neither `generation_config.json` nor the tokenizer knows it as an end, generation runs on to its limit.

Source: https://github.com/huggingface/open-r1/pull/663; https://github.com/lmstudio-ai/mlx-engine/pull/142
(gemma-3-1b-it-qat was published without its end of turn).
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.conversation import Rendered, render
from bitwright.doctor.model import Correction, Model, ids_of
from bitwright.errors import Finding, Severity


def check(model: Model) -> Iterator[Finding]:
    if missing := _missing(model):
        name, ends, token = missing
        wanted = [*ends, model.token_ids[token]]
        yield Finding(
            "generation/end-of-turn",
            name,
            f"eos_token_id {ends[0] if len(ends) == 1 else ends}",
            f"the template's end of turn {token!r}, id {model.token_ids[token]}, among the ends",
            f'set "eos_token_id": {wanted}',
            Severity.WARNING,
        )


def fix(model: Model) -> Correction:
    """The end of turn as one more end of generation."""
    if missing := _missing(model):
        _, ends, token = missing
        return {"generation_config.json": {**model.generation, "eos_token_id": [*ends, model.token_ids[token]]}}
    return {}


def _missing(model: Model) -> tuple[str, list[int], str] | None:
    """The file that decides, its ends, and the token that is not among them."""
    found = render(model) if model.template is not None else None
    if not isinstance(found, Rendered) or not model.token_ids:
        return None
    special = {token["content"] for token in model.added_tokens if token.get("special")}
    after = found.answered_tail.strip()
    last = next((token for token in sorted(special, key=len, reverse=True) if token and after.startswith(token)), None)
    decides = "generation_config.json" if "eos_token_id" in model.generation else "config.json"
    ends = ids_of((model.generation if decides != "config.json" else model.text_config).get("eos_token_id"))
    return (decides, ends, last) if last is not None and ends and model.token_ids[last] not in ends else None
