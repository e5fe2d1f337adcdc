"""A padding token that is missing, or is the end-of-text token.

Collators mask padding out of the loss. Where padding is the end token, the end is masked too, and a model fine-tuned
that way never learns to stop. Where there is none, batching fails or somebody's script quietly takes the end token.

Source: https://github.com/mlabonne/llm-course/issues/33, https://github.com/huggingface/blog/issues/1302 (Falcon).
"""

from __future__ import annotations

from collections.abc import Iterator

from bitwright.doctor.model import Model
from bitwright.errors import Finding, Severity

SPARE = ("<pad>", "[PAD]", "<|pad|>", "<|endoftext|>", "<|finetune_right_pad_id|>", "<|vision_pad|>", "<|dummy_87|>", "<unk>")


def check(model: Model) -> Iterator[Finding]:
    if not model.tokenizer_config:
        return
    pad, eos = model.token("pad"), model.token("eos")
    spare = next((token for token in SPARE if token in model.token_ids and token not in (eos, model.token("bos"))), None)
    help = f"tokenizer.pad_token = {spare!r}" if spare else "add a token of its own for padding before fine-tuning"
    if pad is None:
        yield Finding("tokens/no-padding", "tokenizer_config.json", "no pad_token", "a padding token", help, Severity.WARNING)
    elif pad == eos:
        yield Finding(
            "tokens/padding-is-end",
            "tokenizer_config.json",
            f"pad_token {pad!r} is the eos_token",
            "a padding token that is not the end",
            help,
            Severity.WARNING,
        )
