"""Llama 3.1, 3.2 and 3.3 without their scaling of positions.

They stretch their positions to 131,072 tokens; a copy whose configuration lost that scaling works on short texts and
falls apart on long ones.

Source: https://github.com/vllm-project/speculators/pull/574 and https://github.com/unslothai/unsloth/pull/6197.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.model import Model
from bitwright.errors import Finding, Severity

VOCABULARY, CONTEXT = 128_256, 131_072


def check(model: Model) -> Iterator[Finding]:
    config = model.text_config
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    plain = isinstance(rope, dict) and rope.get("rope_type", rope.get("type", "default")) == "default"
    alike = (config.get("vocab_size"), config.get("max_position_embeddings")) == (VOCABULARY, CONTEXT)
    if model.config.get("model_type") == "llama" and plain and alike:
        yield Finding(
            "family/llama3-rope",
            "config.json",
            f"a context of {CONTEXT} tokens and no rope scaling",
            "the llama3 scaling of Llama 3.1 and later",
            "copy rope_scaling from the original model",
            Severity.WARNING,
        )
