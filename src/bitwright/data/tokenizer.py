"""The model's own tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitwright.errors import fail, in_one_line


def tokenizer_of(directory: Path, trust_remote_code: bool = False) -> Any:
    """The model's own tokenizer; raises BitwrightError when the directory has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise fail(
            "calibration/tokenizer",
            directory,
            saw=in_one_line(error),
            wanted="a tokenizer beside the weights",
            help="copy tokenizer.json and tokenizer_config.json into the directory",
        ) from error


def bos_prefix(tokenizer: Any) -> list[int]:
    """[BOS] where the tokenizer itself puts one before a text, else []."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a").input_ids[:1] == [bos] else []
