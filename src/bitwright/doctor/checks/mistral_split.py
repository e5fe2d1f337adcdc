r"""Mistral models with Llama 3's way to split a text.

Mistral's tokenizer of 131,072 tokens was first published with the splitting expression of Llama 3. It keeps three
digits together and never parts a small letter from a capital, unlike the one that the models were trained with, so that
numbers, `eBay` or `mL` reach the model as tokens that it does not expect. Copies and fine-tunes still carry it.

Source: https://github.com/huggingface/transformers/pull/42131 (the right expression, `fix_mistral_regex`);
https://github.com/microsoft/onnxruntime-genai/issues/1557 (the wrong one).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitwright.doctor.model import Correction, Model, dicts_of
from bitwright.errors import Finding, Severity

WRONG = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
RIGHT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FAMILIES = ("mistral", "mistral3", "ministral", "ministral3", "pixtral", "voxtral")
ITS_TOKENS = ("[INST]", "[AVAILABLE_TOOLS]")


def check(model: Model) -> Iterator[Finding]:
    if _wrong(model):
        yield Finding(
            "family/mistral-split",
            "tokenizer.json",
            "splits text as Llama 3 does, digits in threes",
            "Mistral's own expression, digit by digit",
            "load with fix_mistral_regex=True, or bitwright doctor MODEL --fix OUT",
            Severity.WARNING,
        )


def fix(model: Model) -> Correction:
    """Mistral's own expression."""
    return (
        {"tokenizer.json": {**model.tokenizer, "pre_tokenizer": _corrected(model.tokenizer["pre_tokenizer"])}}
        if _wrong(model)
        else {}
    )


def _wrong(model: Model) -> bool:
    own = all(token in model.token_ids for token in ITS_TOKENS)
    step = model.tokenizer.get("pre_tokenizer")
    return model.config.get("model_type") in FAMILIES and own and _corrected(step) != step


def _corrected(step: Any) -> Any:
    if not isinstance(step, dict):
        return step
    if isinstance(step.get("pretokenizers"), list):
        return {**step, "pretokenizers": [_corrected(part) for part in dicts_of(step["pretokenizers"])]}
    pattern = step.get("pattern")
    return {**step, "pattern": {"Regex": RIGHT}} if isinstance(pattern, dict) and pattern.get("Regex") == WRONG else step
