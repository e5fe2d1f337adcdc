"""Generation that does not stop where the chat template ends a turn.

Models end an answer with the token that the template puts there, often another one than the end of a text. Where
neither `generation_config.json` nor the tokenizer knows it as an end, generation runs on to its limit.

Source: https://github.com/huggingface/open-r1/pull/663; https://github.com/lmstudio-ai/mlx-engine/pull/142
(gemma-3-1b-it-qat was published without its end of turn).
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.conversation import Rendered, render
from bitwright.doctor.model import Model, ids_of
from bitwright.errors import Finding


def check(model: Model) -> Iterator[Finding]:
    found = render(model) if model.template is not None else None
    if not isinstance(found, Rendered) or not model.token_ids:
        return
    special = {token["content"] for token in model.added_tokens if token.get("special")}
    after = found.answered_tail.strip()
    last = next((token for token in sorted(special, key=len, reverse=True) if token and after.startswith(token)), None)
    if last is None:
        return
    settings = model.generation if "eos_token_id" in model.generation else model.text_config
    ends = ids_of(settings.get("eos_token_id"))
    if ends and model.token_ids[last] not in ends:
        name = "generation_config.json" if settings is model.generation else "config.json"
        wanted = [*ends, model.token_ids[last]]
        yield Finding(
            "generation/end-of-turn", name, f"eos_token_id {ends[0] if len(ends) == 1 else ends}",
            f"the template's end of turn {last!r}, id {model.token_ids[last]}, among the ends", f'set "eos_token_id": {wanted}',
            "warning",
        )  # fmt: skip
