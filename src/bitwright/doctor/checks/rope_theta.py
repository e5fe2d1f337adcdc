"""The base of rotary positions: lost in a conversion, or stated twice.

Where `rope_theta` is missing, loaders take 10,000. Llama 3 was trained with 500,000, Qwen 2 and 3 and Code Llama with
1,000,000 (but Qwen 2.5 Math, and what was distilled from DeepSeek R1 into it, state 10,000 and mean it); with the wrong
base a model is fluent for some hundred tokens and incoherent after that. Files of
transformers 4 have the base at the top, files of 5 in `rope_parameters`; where both are there and differ, each loader
takes its own.

Source: https://github.com/lyogavin/airllm/issues/368, https://github.com/karpathy/llama2.c/issues/356 (what a lost base
does); https://github.com/vllm-project/vllm/pull/44158, https://github.com/ggml-org/llama.cpp/issues/24820 (the two
places).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitwright.doctor.model import Model
from bitwright.errors import Finding, Severity

DEFAULT = 10_000
TRAINED = {  # family, vocabulary -> the base of the original
    ("llama", 128_256): 500_000,
    ("qwen2", 151_936): 1_000_000,
    ("qwen2", 152_064): 1_000_000,
    ("qwen3", 151_936): 1_000_000,
}

STATED = ("qwen2",)  # families some of whose models were trained with the default


def check(model: Model) -> Iterator[Finding]:
    config = model.text_config
    top, inner = config.get("rope_theta"), _inner(config)
    if _number(top) and _number(inner) and top != inner:
        yield Finding(
            "config/rope-theta-twice",
            "config.json",
            f"rope_theta {top}, rope_parameters.rope_theta {inner}",
            "one base",
            "copy config.json from the original model",
        )
        return
    base = inner if _number(inner) else top if _number(top) else DEFAULT
    vocabulary = config.get("vocab_size")
    trained = TRAINED.get((str(model.config.get("model_type")), vocabulary if isinstance(vocabulary, int) else 0))
    is_stated = (_number(inner) or _number(top)) and model.config.get("model_type") in STATED
    if trained and base == DEFAULT and not is_stated:
        yield Finding(
            "family/rope-theta",
            "config.json",
            f"rope_theta {top if _number(top) else inner or 'missing'}",
            f"{trained}, with which models of this family and vocabulary were trained",
            f'set "rope_theta": {trained}, unless the model was trained from scratch',
            Severity.WARNING,
        )


def _inner(config: dict[str, Any]) -> Any:
    settings = config.get("rope_parameters")
    return settings.get("rope_theta") if isinstance(settings, dict) else None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
