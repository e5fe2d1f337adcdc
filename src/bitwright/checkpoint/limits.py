"""Numbers that no model has are refused before anything counts up to them (no torch)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitwright.errors import fail

MOST_LAYERS = 2_000  # of a stack
LARGEST = 10**9  # of any other size
PARTS = ("text_config", "vision_config", "llm_config", "audio_config")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers", "decoder_layers")
SIZES = (
    "hidden_size",
    "n_embd",
    "d_model",
    "intermediate_size",
    "n_inner",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "n_positions",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
)
OPTIONAL = ("n_inner", "head_dim", "num_key_value_heads", "num_experts", "num_local_experts", "n_routed_experts")  # may be null
NONE_AT_ALL = ("num_experts", "num_local_experts", "n_routed_experts")  # may be zero
LONGEST_LIST = 100_000  # of layer types, tokens, ...


def require_limits(config: dict[str, Any], where: Path) -> None:
    """Raise BitwrightError unless every size in ``config`` is a whole number that a model can have."""
    for part in (config, *(config[name] for name in PARTS if isinstance(config.get(name), dict))):
        for name in (*LAYERS, *SIZES):
            if name in part and not _sound(name, part[name]):
                most = MOST_LAYERS if name in LAYERS else LARGEST
                raise fail(
                    "config/size",
                    where,
                    saw=f"{name} is {str(part[name])[:40]}",
                    wanted=f"a whole number from 1 to {most}",
                    help="download config.json again, from the model's author",
                )
        for name, value in part.items():
            if isinstance(value, list) and len(value) > LONGEST_LIST:
                raise fail(
                    "config/list",
                    where,
                    saw=f"{str(name)[:60]} has {len(value)} entries",
                    wanted=f"at most {LONGEST_LIST}",
                    help="download config.json again, from the model's author",
                )


def _sound(name: str, value: Any) -> bool:
    if value is None:
        return name in OPTIONAL
    least = 0 if name in NONE_AT_ALL else 1
    if isinstance(value, list):  # one for every layer
        return 0 < len(value) <= MOST_LAYERS and all(_sound(name, one) for one in value)
    return type(value) is int and least <= value <= (MOST_LAYERS if name in LAYERS else LARGEST)
