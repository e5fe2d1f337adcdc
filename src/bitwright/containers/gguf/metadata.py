"""A transformers config as GGUF key-values, and the rotary tensors that some configs stand for."""

from __future__ import annotations

import math
from typing import Any

import gguf
import torch
from torch import Tensor

from bitwright.containers.gguf.families import WINDOWED, Family
from bitwright.errors import fail

QUANTIZATION_VERSION = 2  # of ggml's block formats


def write_config(writer: gguf.GGUFWriter, family: Family, config: Any, name: str, file_type: int) -> None:
    """Add what the runtime must know of the architecture. ``config`` is the text model's."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = rope_of(config)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)) if family.fused_rope else head_dim)
    window = getattr(config, "sliding_window", None)
    if family.arch in WINDOWED and (window or family.always_window):
        writer.add_sliding_window(window or 0)
    for key, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if getattr(config, key, None):
            add(float(getattr(config, key)))
    if sections := rope.get("mrope_section"):
        writer.add_rope_dimension_sections([*sections, *[0] * (4 - len(sections))])
    _write_rope_scaling(writer, family, config, rope)


def rope_of(config: Any) -> dict[str, Any]:
    """Rotary parameters of the layers that attend to everything."""
    parameters = dict(getattr(config, "rope_parameters", None) or {})
    return dict(parameters.get("full_attention", parameters))


def rope_tensors(family: Family, config: Any) -> dict[str, Tensor]:
    """Tensors that hold divisors of the rotary frequencies: Llama 3's smooth scaling, Phi 3's long and short factors."""
    rope = rope_of(config)
    kind = rope.get("rope_type", "default")
    if kind == "llama3":
        return {"rope_freqs.weight": _llama3_divisors(config, rope)}
    if kind == "longrope":
        names = {"rope_factors_long.weight": "long_factor", "rope_factors_short.weight": "short_factor"}
        return {name: torch.tensor(rope[key], dtype=torch.float32) for name, key in names.items()}
    return {}


def require_known_rope(config: Any) -> None:
    """Raise for a kind of rotary scaling that llama.cpp does not have."""
    kind = rope_of(config).get("rope_type", "default")
    if kind not in ("default", "linear", "yarn", "llama3", "longrope"):
        raise fail(
            "gguf/rope",
            "config.json: rope_parameters",
            saw=f"rope_type {kind}",
            wanted="default, linear, yarn, llama3 or longrope",
            help="--container bitsandbytes",
        )


def _write_rope_scaling(writer: gguf.GGUFWriter, family: Family, config: Any, rope: dict[str, Any]) -> None:
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(int(original))
    elif kind == "longrope":
        original = int(rope.get("original_max_position_embeddings") or config.original_max_position_embeddings)
        stretch = config.max_position_embeddings / original
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(original)
        attention = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
        writer.add_rope_scaling_attn_factors(float(rope.get("attention_factor") or attention))
    elif family.arch == gguf.MODEL_ARCH.PHI3:
        writer.add_rope_scaling_orig_ctx_len(config.max_position_embeddings)


def _llama3_divisors(config: Any, rope: dict[str, Any]) -> Tensor:
    """[head_dim / 2]: 1 for short waves, ``factor`` for long ones, and a smooth passage between (Llama 3.1, appendix)."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    frequency = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)  # over the original context
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    divisors: Tensor = 1 / ((1 - smooth) / factor + smooth)
    return divisors
