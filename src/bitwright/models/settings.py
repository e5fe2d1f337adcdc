"""The settings of a configuration as transformers completes them, with the defaults of its class (no torch).

Published files state only what differs from the defaults of their class. ``defaults.json`` holds those defaults; the tests
compare it with transformers, and ``python -m tests.models.defaults`` writes it anew.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from bitwright.checkpoint.limits import LARGEST, MOST_LAYERS

Config = dict[str, Any]
FULL, SLIDING, RECURRENT, CONVOLUTION, BOTH, NONE = "full", "sliding", "recurrent", "convolution", "both", "none"
KINDS = {  # what configurations call a layer that mixes tokens
    "full_attention": FULL,
    "attention": FULL,
    "cross_attention": FULL,
    "sliding_attention": SLIDING,
    "chunked_attention": SLIDING,
    "linear_attention": RECURRENT,
    "mamba": RECURRENT,
    "conv": CONVOLUTION,
    "hybrid": BOTH,
    "mlp": NONE,
    "moe": NONE,
}
NEEDED = ("hidden_size", "vocab_size")
SIZES = (
    *NEEDED,
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "sliding_window",
    "kv_lora_rank",
    "intermediate_size",
)
OLD_NAMES = {  # of families that have no defaults here
    "n_embd": "hidden_size",
    "d_model": "hidden_size",
    "n_head": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_layers": "num_hidden_layers",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "max_seq_len": "max_position_embeddings",
}
OF_FULL = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}  # of layers that see all tokens
LETTERS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}  # of Nemotron-H's pattern


@cache
def defaults() -> dict[str, Any]:
    """ "classes": model_type -> settings of its class; "models": that of a model that sees -> the types of its two halves."""
    data: dict[str, Any] = json.loads(files("bitwright.models").joinpath("defaults.json").read_text(encoding="utf-8"))
    return data


def text_config(config: Config) -> Config:
    """All settings of the language model, which stand in a part of their own in models that also see.

    ``layer_types`` of it names every layer where the configuration does, in whichever way.
    """
    model = str(config.get("model_type"))
    halves = defaults()["models"].get(model)
    part = config.get("text_config", config.get("llm_config"))
    stated = part if isinstance(part, dict) else config
    kind = str(stated.get("model_type") or (halves or {}).get("text") or model)
    kind = halves["text"] if halves and kind == model else kind  # written before the two were kept apart
    text = _completed(kind, stated) | {"model_type": kind}
    text["layer_types"] = _stated_types(text)
    if halves:
        tied = config.get("tie_word_embeddings", stated.get("tie_word_embeddings"))
        text["tie_word_embeddings"] = halves["tie_word_embeddings"] if tied is None else tied
    return text


def vision_config(config: Config) -> Config | None:
    """All settings of the vision tower; None in a model that does not see."""
    halves = defaults()["models"].get(str(config.get("model_type")))
    stated = config.get("vision_config")
    if not isinstance(stated, dict):
        return dict(defaults()["classes"].get(halves["vision"], {})) if halves else None
    kind = str(stated.get("model_type") or "")
    kind = kind if kind in defaults()["classes"] or not halves else halves["vision"]
    return _completed(kind, stated)


def _completed(kind: str, stated: Config) -> Config:
    """``stated`` over the defaults of its class, each setting by the name that the class gives it."""
    own = dict(defaults()["classes"].get(kind, {}))
    names = own.pop("attribute_map", {}) if own else {old: new for old, new in OLD_NAMES.items() if new not in stated}
    return {**own, **{names.get(name, name): value for name, value in stated.items()}}


def _stated_types(text: Config) -> list[str] | None:
    pattern = text.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        return [LETTERS.get(letter, "mlp") for letter in pattern]
    stated = text.get("layer_types") or text.get("layers_block_type")
    return [str(kind) for kind in stated] if isinstance(stated, list) and stated else None


def of_layer(text: Config, layer: int, kind: str) -> Config:
    """Settings of one layer of ``kind``, where some differ from the others: in Gemma 4 those that see all tokens have fewer and
    wider heads."""
    by_layer = text.get("per_layer_config")
    own = by_layer.get(str(layer)) if isinstance(by_layer, dict) else None
    of_kind = {name: text[wide] for name, wide in OF_FULL.items() if kind == FULL and text.get(wide)}
    return {**text, **of_kind, **(own if isinstance(own, dict) else {})}


def head_dim(text: Config) -> int:
    """Width of one attention head."""
    return int(text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"])


def shared_heads(text: Config) -> int:
    """Heads of keys and values."""
    return int(text.get("num_key_value_heads") or text["num_attention_heads"])


def require_sizes(text: Config) -> None:
    """Raises ValueError where a size is missing, or is no number that a model has."""
    for name in SIZES:
        value = text.get(name)
        sound = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST
        if not sound and (value is not None or name in NEEDED) and not (name == "sliding_window" and value == 0):
            raise ValueError(f"{name} {value!r}")
    n_layers(text)


def n_layers(text: Config) -> int:
    """Layers of the model. Raises ValueError for a number that no model has, which would be counted for ever."""
    count = int(text.get("num_hidden_layers") or len(text.get("layer_types") or ()))
    if not 0 < count <= MOST_LAYERS:
        raise ValueError(f"num_hidden_layers {count}")
    return count


def unknown_types(text: Config) -> list[str]:
    """Names of layers that are in no list here; they count as full attention."""
    return sorted(set(text.get("layer_types") or ()) - set(KINDS))


def layer_kinds(text: Config) -> list[str]:
    """What mixes tokens in every layer."""
    stated, count = text.get("layer_types"), n_layers(text)
    if stated and len(stated) == count:
        return [KINDS.get(kind, FULL) for kind in stated]
    rule = RULES.get(str(text.get("model_type")))
    if rule:
        return [rule(text, layer) for layer in range(count)]
    slides = text.get("sliding_window") and text.get("use_sliding_window", True)
    if slides and (pattern := text.get("sliding_window_pattern")):
        return [FULL if (layer + 1) % pattern == 0 else SLIDING for layer in range(count)]
    return [SLIDING if slides else FULL] * count


def _jamba(text: Config, layer: int) -> str:
    return FULL if layer % text["attn_layer_period"] == text["attn_layer_offset"] else RECURRENT


def _bamba(text: Config, layer: int) -> str:
    return FULL if layer in (text.get("attn_layer_indices") or ()) else RECURRENT


def _every_fourth(text: Config, layer: int) -> str:
    return FULL if (layer + 1) % int(text.get("full_attention_interval") or 4) == 0 else RECURRENT


def _lfm2(text: Config, layer: int) -> str:
    attends = text.get("full_attn_idxs")
    return FULL if attends is None or layer in attends else CONVOLUTION


def _qwen2(text: Config, layer: int) -> str:
    slides = text.get("use_sliding_window") and text.get("sliding_window")
    first = text.get("max_window_layers")
    return SLIDING if slides and first is not None and layer >= int(first) else FULL


def _alternating(text: Config, layer: int) -> str:
    return SLIDING if layer % 2 == 0 and text.get("sliding_window") else FULL


def _gemma3(text: Config, layer: int) -> str:
    pattern = int(text.get("sliding_window_pattern") or 6)
    return SLIDING if (layer + 1) % pattern and text.get("sliding_window") else FULL


def _olmo3(text: Config, layer: int) -> str:
    return SLIDING if (layer + 1) % 4 else FULL


RULES = {
    "jamba": _jamba,
    "bamba": _bamba,
    "qwen3_next": _every_fourth,
    "qwen3_5_text": _every_fourth,
    "qwen3_5_moe_text": _every_fourth,
    "lfm2": _lfm2,
    "gemma2": _alternating,
    "gpt_oss": _alternating,
    "gemma3_text": _gemma3,
    "olmo3": _olmo3,
    "falcon_h1": lambda text, layer: BOTH,
    "granitemoehybrid": lambda text, layer: RECURRENT,
    "mamba": lambda text, layer: RECURRENT,
    "mamba2": lambda text, layer: RECURRENT,
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen2_vl_text", "qwen2_5_vl_text"), _qwen2),
}
