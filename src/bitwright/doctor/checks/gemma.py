"""Mistakes of Gemma checkpoints: texts without their beginning, and a number format that overflows.

Gemma answers at random without its BOS token. A tokenizer that does not put it there makes every plain prompt one
without; where the chat template writes it, only plain text suffers. Gemma 3 was trained in bfloat16, and its
activations pass 65,504, the largest number of float16, where they become infinite.

Source: https://github.com/EleutherAI/lm-evaluation-harness/pull/1465 and /pull/2049 (Gemma without BOS);
https://github.com/huggingface/transformers/pull/36832 and /issues/39972 (Gemma 3 in float16).
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.conversation import Rendered, render
from bitwright.doctor.model import Model
from bitwright.errors import Finding, Severity

OVERFLOWING = ("gemma3", "gemma3_text", "gemma3n", "gemma3n_text")


def check(model: Model) -> Iterator[Finding]:
    family, bos = str(model.config.get("model_type", "")), model.token("bos")
    if family.startswith("gemma") and bos and model.tokenizer and not model.adds(bos):
        found = render(model) if model.template is not None else None
        written = isinstance(found, Rendered) and found.asked.lstrip().startswith(bos)
        yield Finding(
            "family/gemma-bos",
            "tokenizer.json",
            f"nothing puts {bos!r} before a text",
            "Gemma's texts begin with it",
            "copy tokenizer.json and tokenizer_config.json from the original model",
            Severity.NOTE if written else Severity.WARNING,
        )
    stored = model.usual_dtype
    if family in OVERFLOWING and stored == "float16":
        yield Finding(
            "family/gemma3-float16",
            "config.json",
            "weights in float16",
            "bfloat16 or float32, which hold its activations",
            "start from the original, and load with dtype bfloat16 or float32",
            Severity.WARNING,
        )
