"""The model's own tokenizer."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from bitwright.checkpoint.workdir import content_hash
from bitwright.errors import fail, in_one_line

SPOKEN = (  # names of files that decide what a model is told and where it ends
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "chat_template*"),
    *("generation_config.json", "*processor_config.json"),
)


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


def words_digest(directory: Path) -> str:
    """Hash of everything in ``directory`` that decides what a model is asked and where it ends: tokenizer, chat template,
    tokens that end a text, processors. A checkpoint's own hash knows its configuration and weights alone."""
    found = sorted(path for pattern in SPOKEN for path in directory.glob(pattern) if path.is_file())
    return content_hash([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in dict.fromkeys(found)])


def token_ids(tokenizer: Any, text: str, special: bool = False) -> list[int]:
    """The tokens of ``text``; ``special``: with those that the tokenizer adds around a text.

    Raises BitwrightError where the tokenizer fails on it, as where its pattern needs more steps than its library allows.
    """
    try:
        return list(tokenizer(text, add_special_tokens=special, verbose=False).input_ids)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # Rust's, which is no Exception
            raise
        raise fail(
            "tokenizer/text",
            f"{text[:40]!r}",
            saw=in_one_line(error),
            wanted="a tokenizer that reads any text",
            help="bitwright doctor MODEL, or copy tokenizer.json from the original model again",
        ) from error


def bos_prefix(tokenizer: Any) -> list[int]:
    """[BOS] where the tokenizer itself puts one before a text, else []."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and token_ids(tokenizer, "a", special=True)[:1] == [bos] else []
