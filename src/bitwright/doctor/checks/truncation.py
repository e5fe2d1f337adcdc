"""A tokenizer that was saved in the middle of its work.

tokenizer.json can hold a truncation or padding that one call asked for and that was saved with the model. A generating
model then cuts every prompt at that length, or fills it up to it, without a word.

Source: https://github.com/vllm-project/llm-compressor/pull/2917; https://github.com/spiceai/spiceai/pull/13416.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.model import Correction, Model
from bitwright.errors import Finding, Severity


def check(model: Model) -> Iterator[Finding]:
    if not model.speaks:  # models that embed or classify truncate on purpose
        return
    truncation, padding = model.tokenizer.get("truncation"), model.tokenizer.get("padding")
    if isinstance(truncation, dict):
        yield Finding(
            "tokenizer/truncation",
            "tokenizer.json",
            f"truncation to {truncation.get('max_length')} tokens",
            "none",
            'set "truncation": null',
            Severity.WARNING,
        )
    strategy = padding.get("strategy") if isinstance(padding, dict) else None
    if isinstance(strategy, dict) and "Fixed" in strategy:
        yield Finding(
            "tokenizer/padding",
            "tokenizer.json",
            f"padding to {strategy['Fixed']} tokens",
            "none",
            'set "padding": null',
            Severity.WARNING,
        )


def fix(model: Model) -> Correction:
    """Neither of the two."""
    wrong = {finding.rule.rsplit("/", 1)[-1] for finding in check(model)}
    return {"tokenizer.json": {**model.tokenizer, **dict.fromkeys(wrong)}} if wrong else {}
