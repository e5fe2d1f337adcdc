"""Mistakes that are known of single families.

- **Gemma** answers at random without its BOS token; a tokenizer that does not put it there makes every plain prompt one
  without.
- **Llama 3.1, 3.2, 3.3** stretch their positions; a copy whose configuration lost that scaling works on short texts and
  falls apart on long ones.

Source: https://github.com/EleutherAI/lm-evaluation-harness/pull/1465 and /pull/2049 (Gemma without BOS);
https://github.com/vllm-project/speculators/pull/574 and https://github.com/unslothai/unsloth/pull/6197 (Llama 3.1 without
scaling).
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.model import Model
from bitwright.errors import Finding

LLAMA3_VOCABULARY, LLAMA31_CONTEXT = 128_256, 131_072


def check(model: Model) -> Iterator[Finding]:
    family, bos = str(model.config.get("model_type", "")), model.token("bos")
    if family.startswith("gemma") and bos and model.tokenizer and not model.adds(bos):
        yield Finding(
            "family/gemma-bos", "tokenizer.json", f"nothing puts {bos!r} before a text", "Gemma's texts begin with it",
            "copy tokenizer.json and tokenizer_config.json from the original model", "warning",
        )  # fmt: skip
    config = model.text_config
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    plain = isinstance(rope, dict) and rope.get("rope_type", rope.get("type", "default")) == "default"
    context = config.get("max_position_embeddings")
    vocabulary = config.get("vocab_size")
    if family == "llama" and plain and context == LLAMA31_CONTEXT and vocabulary == LLAMA3_VOCABULARY:
        yield Finding(
            "family/llama3-rope", "config.json", f"a context of {context} tokens and no rope scaling",
            "the llama3 scaling of Llama 3.1 and later", "copy rope_scaling from the original model", "warning",
        )  # fmt: skip
