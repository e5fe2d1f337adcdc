"""A Hugging Face tokenizer as GGUF key-values: byte-level BPE as "gpt2", SentencePiece-style BPE as "llama".

llama.cpp splits text with regular expressions of its own before it merges, chosen by name; the name is found from what
tokenizer.json says about its pre-tokenizer. A pre-tokenizer without a counterpart is refused: a file that splits otherwise
runs, and is worse without saying so.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from gguf import TokenType

from bitwright.data.tokenizer import bos_prefix
from bitwright.errors import fail

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER, _UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s|"
_CASED_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# (expression in tokenizer.json, whether whole words skip the merges) -> name in llama.cpp
SPLITS = {
    (rf"{_CONTRACTIONS}{_WORDS}\p{{N}}{{1,3}}{_REST}", True): "llama-bpe",
    (rf"{_CONTRACTIONS}{_WORDS}\p{{N}}{{1,3}}{_REST}", False): "dbrx",
    (rf"{_CONTRACTIONS}{_WORDS}\p{{N}}{_REST}", False): "qwen2",
    (_CASED % ("", "") + rf"\p{{N}}{_CASED_REST}", True): "tekken",
    (_CASED % (f"{_CONTRACTIONS}?", f"{_CONTRACTIONS}?") + rf"\p{{N}}{{1,3}}{_CASED_REST}", False): "gpt-4o",
}
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
ADDED_SCORE, PADDING_SCORE = -1000.0, -10000.0


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id as a GGUF file lists them."""

    model: str  # gpt2 or llama
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    space_prefix: bool
    bos_first: bool
    special: dict[str, int]  # bos, eos, unk, pad
    chat_template: str | None
    strips_right: bool  # special tokens swallow the blanks that follow them

    def named(self, name: str) -> str:
        """``name``, changed where needed so that llama.cpp lets special tokens swallow blanks if and only if these do: no key
        of the file says it, llama.cpp goes by a name of Phi 3."""
        bare = re.sub(r"(?i)phi-?3", "Phi", name)
        return name if (bare != name) == self.strips_right else f"Phi-3 {name}" if self.strips_right else bare

    def write(self, writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        for name, add in (
            ("bos", writer.add_bos_token_id),
            ("eos", writer.add_eos_token_id),
            ("eot", writer.add_eot_token_id),
            ("unk", writer.add_unk_token_id),
            ("pad", writer.add_pad_token_id),
        ):
            if name in self.special:
                add(self.special[name])
        writer.add_add_bos_token(self.bos_first)
        writer.add_add_eos_token(False)
        writer.add_add_space_prefix(self.space_prefix)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def vocabulary_of(directory: Path, tokenizer: Any, n_rows: int) -> Vocabulary:
    """The vocabulary of ``tokenizer``, filled up to the ``n_rows`` of the embedding. Raises BitwrightError for a kind of
    tokenizer that llama.cpp does not have."""
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    model = data["model"]
    if model["type"] != "BPE":
        raise _unknown(directory, f"a tokenizer of type {model['type']}")
    added = {entry["id"]: entry for entry in data["added_tokens"]}
    tokens = {index: token for token, index in model["vocab"].items()} | {i: entry["content"] for i, entry in added.items()}
    if max(tokens) >= n_rows:
        raise fail(
            "gguf/vocabulary",
            directory,
            saw=f"token {max(tokens)}",
            wanted=f"ids below {n_rows}, the rows of the embedding",
            help="use the tokenizer that belongs to the weights",
        )
    by_bytes = bool(model.get("byte_fallback"))
    if by_bytes and not {f"<0x{byte:02X}>" for byte in range(256)} <= set(tokens.values()):
        raise _unknown(directory, "a tokenizer with byte fallback that lacks some of the 256 byte tokens")
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    texts = [tokens.get(i, f"[PAD{i}]") for i in range(n_rows)]
    types = [_type(i, tokens, added, model.get("unk_token"), by_bytes) for i in range(n_rows)]
    return Vocabulary(
        model="llama" if by_bytes else "gpt2",
        pre="default" if by_bytes else _pre_tokenizer(directory, data),
        tokens=texts,
        types=[int(t) for t in types],
        scores=_scores(directory, texts, types, merges) if by_bytes else None,
        merges=None if by_bytes else merges,
        space_prefix=by_bytes and _prefixes_space(data),
        bos_first=bool(bos_prefix(tokenizer)),
        special=_special(directory, tokenizer),
        chat_template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
        strips_right=by_bytes and any(entry["special"] and entry["rstrip"] for entry in data["added_tokens"]),
    )


def _type(index: int, tokens: dict[int, str], added: dict[int, Any], unknown: str | None, by_bytes: bool) -> TokenType:
    if index not in tokens:
        return TokenType.UNUSED
    if by_bytes and tokens[index] == unknown:
        return TokenType.UNKNOWN
    if index in added:
        return TokenType.CONTROL if added[index]["special"] else TokenType.USER_DEFINED
    return TokenType.BYTE if by_bytes and BYTE_TOKEN.fullmatch(tokens[index]) else TokenType.NORMAL


def _scores(directory: Path, tokens: list[str], types: list[TokenType], merges: list[str]) -> list[float]:
    """Scores [V]: SentencePiece's own where its model lies there, else the order of merges, which is all that they say."""
    own = directory / "tokenizer.model"
    if own.is_file():
        from sentencepiece import SentencePieceProcessor

        pieces = SentencePieceProcessor(model_file=str(own))
        known = {pieces.id_to_piece(i): pieces.get_score(i) for i in range(pieces.get_piece_size())}
    else:
        known = {}
        for rank, pair in enumerate(merges):
            known.setdefault(pair.replace(" ", "", 1), -float(rank + 1))
    last = -float(len(merges) + 1)  # what no merge makes: single characters
    fixed = {TokenType.UNUSED: PADDING_SCORE, TokenType.CONTROL: ADDED_SCORE, TokenType.USER_DEFINED: ADDED_SCORE}
    return [fixed[t] if t in fixed else known.get(token, last) for token, t in zip(tokens, types, strict=True)]


def _steps(part: dict[str, Any] | None, several: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return list(part[several]) if part["type"] == "Sequence" else [part]


def _pre_tokenizer(directory: Path, data: dict[str, Any]) -> str:
    steps = _steps(data["pre_tokenizer"], "pretokenizers")
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0]["use_regex"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1]["use_regex"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not steps[1]["use_regex"]:
        expression = steps[0]["pattern"].get("Regex", "")
        found = SPLITS.get((expression, bool(data["model"].get("ignore_merges"))))
        if found:
            return found
    raise _unknown(directory, f"a pre-tokenizer of {', '.join(kinds) or 'nothing'} with expressions of its own")


def _prefixes_space(data: dict[str, Any]) -> bool:
    normalizers = _steps(data["normalizer"], "normalizers")
    steps = _steps(data["pre_tokenizer"], "pretokenizers")
    return any(step["type"] == "Prepend" for step in normalizers) or any(
        step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in steps
    )


def _special(directory: Path, tokenizer: Any) -> dict[str, int]:
    found = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    ends = _generation_ends(directory)
    others = [end for end in ends if end != found["eos"]]
    if others:
        found["eot"] = others[-1]
    return {name: int(index) for name, index in found.items() if index is not None}


def _generation_ends(directory: Path) -> list[int]:
    path = directory / "generation_config.json"
    ends = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    if ends is None:
        return []
    return [int(end) for end in (ends if isinstance(ends, list) else [ends])]


def _unknown(directory: Path, saw: str) -> Exception:
    return fail(
        "gguf/tokenizer",
        directory / "tokenizer.json",
        saw=saw,
        wanted="a tokenizer that llama.cpp splits text alike with",
        help="--container bitsandbytes, or tell us which model it is",
    )
