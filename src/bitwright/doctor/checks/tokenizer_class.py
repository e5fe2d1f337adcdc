"""A byte-level tokenizer that is called LlamaTokenizer.

The class LlamaTokenizer of transformers 5 sets up its own pre-tokenizer of words with a mark, whatever tokenizer.json
says; over a vocabulary of bytes, spaces are lost and a model gets much worse. Later releases of 5 notice it and load
the file as it is; others do not.

Source: https://github.com/huggingface/transformers/issues/45488 and /issues/48206;
https://github.com/RBLN-SW/rbln-model-zoo/pull/87.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitwright.doctor.model import Correction, Model, dicts_of
from bitwright.errors import Finding, Severity

WORDS = ("LlamaTokenizer", "LlamaTokenizerFast")
RIGHT = "PreTrainedTokenizerFast"
LOADED_AS_THEY_ARE = (
    "phi3",
    "qwen2",
    "internlm2",
    "internlm3",
    "minicpm3",
    "jamba",
    "llava",
    "llava_next",
    "nemotron",
    "phimoe",
)


def check(model: Model) -> Iterator[Finding]:
    if _wrong(model):
        yield Finding(
            "tokenizer/class",
            "tokenizer_config.json",
            f"{model.tokenizer_config['tokenizer_class']}, tokenizer.json splits into bytes",
            "a class that takes it as it is",
            f'set "tokenizer_class": "{RIGHT}"',
            Severity.WARNING,
        )


def fix(model: Model) -> Correction:
    """The class that takes tokenizer.json as it is."""
    return {"tokenizer_config.json": {**model.tokenizer_config, "tokenizer_class": RIGHT}} if _wrong(model) else {}


def _wrong(model: Model) -> bool:
    settings, family = model.tokenizer_config, str(model.config.get("model_type", ""))
    spared = family in LOADED_AS_THEY_ARE or "mistral" in family or "auto_map" in settings
    return settings.get("tokenizer_class") in WORDS and not spared and _splits_bytes(model.tokenizer.get("pre_tokenizer"))


def _splits_bytes(step: Any) -> bool:
    if not isinstance(step, dict):
        return False
    return step.get("type") == "ByteLevel" or any(_splits_bytes(part) for part in dicts_of(step.get("pretokenizers")))
