"""Rotary dimensions of a head: halves in transformers, pairs in llama.cpp's oldest families. Whole rows change places."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Heads:
    """What a file says of its heads, by the names that transformers' configurations have."""

    num_attention_heads: int
    num_key_value_heads: int

    @classmethod
    def of(cls, metadata: dict[str, object], arch: str) -> Heads:
        queries = metadata[f"{arch}.attention.head_count"]
        return cls(int(str(queries)), int(str(metadata.get(f"{arch}.attention.head_count_kv", queries))))


def rotated_heads(parameter: str, config: object) -> int | None:
    """Number of heads whose rows ``parameter`` holds, if they are rotated."""
    module = parameter.rsplit(".", 1)[0]
    if module.endswith("q_proj"):
        return int(config.num_attention_heads)  # type: ignore[attr-defined]
    if module.endswith("k_proj"):
        return int(config.num_key_value_heads)  # type: ignore[attr-defined]
    return None


def rotated_as_pairs(rows: Tensor, n_heads: int) -> Tensor:
    """``rows`` [N, ...] with the two halves of every head interleaved: row i of the first half, then of the second."""
    halves = rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def rotated_as_halves(rows: Tensor, n_heads: int) -> Tensor:
    """The inverse of ``rotated_as_pairs``."""
    pairs = rows.reshape(n_heads, rows.shape[0] // n_heads // 2, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)
