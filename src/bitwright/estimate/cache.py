"""Keys and values of the tokens so far: what a context costs in memory (no torch)."""

from __future__ import annotations

from typing import Any

from bitwright.estimate.shapes import head_dim, text_config

Config = dict[str, Any]
FULL, SLIDING = "full_attention", "sliding_attention"


def cache_nbytes(config: Config, n_tokens: int, batch: int = 1, bits: float = 16) -> int:
    """Bytes that ``n_tokens`` of each of ``batch`` texts take, at ``bits`` a number.

    A layer with full attention keeps keys and values of all tokens for each key-value head, a sliding layer those of its
    window, latent attention (DeepSeek-V2, arXiv 2405.04434) one compressed vector and the rotary part of the key.
    """
    text = text_config(config)
    entries = sum(_entries(text, kind, n_tokens) for kind in layer_kinds(text))
    return round(batch * entries * bits / 8)


def longest_context(config: Config, nbytes: int, batch: int = 1, bits: float = 16) -> int:
    """Tokens whose cache fits into ``nbytes``, at most what the model was made for."""
    low, high = 0, int(text_config(config).get("max_position_embeddings") or 2**31)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cache_nbytes(config, middle, batch, bits) <= nbytes else (low, middle - 1)
    return low


def layer_kinds(text: Config) -> list[str]:
    """Full or sliding, for every layer."""
    stated, layers = text.get("layer_types"), int(text["num_hidden_layers"])
    if isinstance(stated, list) and len(stated) == layers:
        return stated
    slides = text.get("sliding_window") and text.get("use_sliding_window", True)
    if text.get("model_type") == "gemma2" and slides:
        return [SLIDING if layer % 2 == 0 else FULL for layer in range(layers)]
    if pattern := text.get("sliding_window_pattern"):
        return [FULL if (layer + 1) % pattern == 0 else SLIDING for layer in range(layers)]
    if text.get("model_type") == "qwen2" and slides:
        return [SLIDING if layer >= int(text.get("max_window_layers", layers)) else FULL for layer in range(layers)]
    return [SLIDING if slides else FULL] * layers


def _entries(text: Config, kind: str, n_tokens: int) -> int:
    """Numbers that one layer keeps of one text."""
    if kind == SLIDING:
        n_tokens = min(n_tokens, int(text["sliding_window"]))
    if "kv_lora_rank" in text:
        return n_tokens * int(text["kv_lora_rank"] + text["qk_rope_head_dim"])
    heads = int(text.get("num_key_value_heads") or text["num_attention_heads"])
    return 2 * heads * head_dim(text) * n_tokens
