"""The settings of a GGUF file under the names that config.json gives them (no torch).

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A setting may be one number or one for every layer.
"""

from __future__ import annotations

from array import array
from typing import Any

from bitwright.checkpoint.gguf_header import GgufHeader
from bitwright.errors import fail
from bitwright.models.settings import Config

KINDS = {  # llama.cpp's name of an architecture -> transformers' name
    "gemma3": "gemma3_text",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "deepseek2": "deepseek_v2",
    "gpt-oss": "gpt_oss",
    "granitehybrid": "granitemoehybrid",
    "falcon-h1": "falcon_h1",
    "qwen3next": "qwen3_next",
    "qwen35": "qwen3_5_text",
    "qwen35moe": "qwen3_5_moe_text",
    "qwen2vl": "qwen2_vl_text",
    "qwen3vl": "qwen3_vl_text",
    "glm4moe": "glm4_moe",
}
NAMES = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attention.kv_lora_rank": "kv_lora_rank",
    "rope.dimension_count": "qk_rope_head_dim",
    "expert_used_count": "num_experts_per_tok",
    "shortconv.l_cache": "conv_L_cache",
}
DELTA = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")


def gguf_config(header: GgufHeader) -> Config:
    """What a cache and a workspace are counted from. Raises BitwrightError where the file does not say it."""
    kind = header.metadata.get("general.architecture")

    def stated(key: str) -> Any:
        return header.metadata.get(f"{kind}.{key}")

    needed = ("embedding_length", "block_count", "attention.head_count")
    missing = [key for key in needed if stated(key) is None]
    embedding = header.tensors.get("token_embd.weight")
    if missing or embedding is None:
        raise fail(
            "estimate/gguf",
            str(header.file),
            saw=f"architecture {kind!r} without {missing[0] if missing else 'an embedding'}",
            wanted="the settings of a language model",
            help="name the file of the language model, not of its vision tower",
        )
    config: Config = {name: value for key, name in NAMES.items() if (value := _one(stated(key))) not in (None, 0)} | {
        "model_type": KINDS.get(str(kind), str(kind)),
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    shared = stated("attention.head_count_kv")
    config["num_key_value_heads"] = _one(shared) or config.get("num_attention_heads")
    if isinstance(shared, array | list) and 0 in shared:  # layers without keys and values keep a state
        recurrent = "conv" if stated("shortconv.l_cache") else "linear_attention"
        config["layer_types"] = ["full_attention" if heads else recurrent for heads in shared]
    return config | _recurrent(config, stated)


def _one(value: Any) -> Any:
    """The number, or the largest of those of the layers."""
    numbers = isinstance(value, array) or (isinstance(value, list) and all(isinstance(v, int | float) for v in value))
    return max(value) if numbers and len(value) else value


def _recurrent(config: Config, stated: Any) -> Config:
    """Sizes of recurrent states."""
    kernel, inner, state = (_one(stated(f"ssm.{key}")) for key in ("conv_kernel", "inner_size", "state_size"))
    heads, groups = (_one(stated(f"ssm.{key}")) or 1 for key in ("time_step_rank", "group_count"))
    if not all(isinstance(size, int) and size > 0 for size in (kernel, inner, state, heads, groups, config.get("hidden_size"))):
        return {}
    if config["model_type"] in DELTA:
        return {
            "linear_conv_kernel_dim": kernel,
            "linear_num_value_heads": heads,
            "linear_num_key_heads": groups,
            "linear_key_head_dim": state,
            "linear_value_head_dim": inner // heads,
        }
    return {
        "mamba_d_conv": kernel,
        "mamba_d_state": state,
        "mamba_d_ssm": inner,
        "mamba_n_heads": heads,
        "mamba_n_groups": groups,
        "mamba_expand": inner / config["hidden_size"],
        "mamba_dt_rank": heads,
    }
