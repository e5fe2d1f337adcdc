"""Attention: the tensors of its layers, and what it keeps of the tokens so far (no torch)."""

from __future__ import annotations

from bitwright.estimate.parts import LINEAR, OTHER, Part, Parts, linear
from bitwright.models.settings import SLIDING, Config, head_dim, shared_heads

ALL = ("q", "k", "v", "o")


def attention(
    text: Config,
    layer: int,
    bias: tuple[str, ...] = (),
    qk_norm: str = "",
    sinks: bool = False,
    gated: bool = False,
    fused: bool = False,
) -> Parts:
    """Grouped-query attention (arXiv 2305.13245).

    ``bias``: which of q, k, v, o have one. ``qk_norm``: "head" over each head's width, "all" over the whole projection.
    ``sinks``: one number a head. ``gated``: queries come with a gate of their width.
    ``fused``: queries, keys and values are one matrix.
    """
    hidden, width, heads = int(text["hidden_size"]), head_dim(text), int(text["num_attention_heads"])
    shared = shared_heads(text)
    rows = {"q": heads * width * (2 if gated else 1), "k": shared * width, "v": shared * width}
    if fused:
        yield from linear(sum(rows.values()), hidden, name=f"blk.{layer}.attn_qkv.weight")
    for role, n_rows in () if fused else rows.items():
        yield from linear(n_rows, hidden, bias=role in bias, name=f"blk.{layer}.attn_{role}.weight")
    yield from linear(hidden, heads * width, bias="o" in bias, name=f"blk.{layer}.attn_output.weight")
    if qk_norm:
        yield from (Part(OTHER, (width if qk_norm == "head" else rows[role],)) for role in "qk")
    if sinks:
        yield Part(OTHER, (heads,))


def latent_attention(text: Config, layer: int) -> Parts:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434)."""
    hidden, heads, rank = text["hidden_size"], text["num_attention_heads"], text["kv_lora_rank"]
    plain, rotary, values = text["qk_nope_head_dim"], text["qk_rope_head_dim"], text["v_head_dim"]
    if queries := text.get("q_lora_rank"):
        yield Part(LINEAR, (queries, hidden))
        yield Part(OTHER, (queries,))
        yield Part(LINEAR, (heads * (plain + rotary), queries))
    else:
        yield Part(LINEAR, (heads * (plain + rotary), hidden))
    yield Part(LINEAR, (rank + rotary, hidden))
    yield Part(OTHER, (rank,))
    yield Part(LINEAR, (heads * (plain + values), rank))
    yield Part(LINEAR, (hidden, heads * values))


def kept_numbers(text: Config, kind: str, n_tokens: int) -> int:
    """Numbers that one layer keeps of one text of ``n_tokens``.

    Keys and values of each key-value head; under latent attention one compressed vector and the rotary part of the key.
    """
    if kind == SLIDING:
        n_tokens = min(n_tokens, int(text.get("sliding_window") or text.get("attention_chunk_size") or n_tokens))
    if "kv_lora_rank" in text:
        return n_tokens * int(text["kv_lora_rank"] + text["qk_rope_head_dim"])
    return 2 * shared_heads(text) * head_dim(text) * n_tokens
