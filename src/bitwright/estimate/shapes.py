"""The tensors that transformers would build for a configuration, counted without building them (no torch).

Each family is a row: what its attention, its feed-forward layers and its norms look like. The tests hold every row against the
class itself on the meta device, role by role.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from bitwright.errors import fail

LINEAR, EXPERT, EMBEDDING, HEAD, NORM, BIAS, VISION = "linear", "expert", "embedding", "head", "norm", "bias", "vision"
Config = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """``count`` tensors of one shape. ``active`` of them take part in one token, where a router chooses."""

    role: str
    shape: tuple[int, ...]
    count: int = 1
    active: int | None = None
    name: str = ""  # as GGUF files call it, where it is one matrix of a dense model

    @property
    def n_parameters(self) -> int:
        return prod(self.shape) * self.count

    @property
    def n_active(self) -> int:
        return prod(self.shape) * (self.count if self.active is None else self.active)


@dataclass(frozen=True)
class Family:
    """What the blocks of a family are made of."""

    bias: tuple[str, ...] = ()  # of q, k, v, o that always have one
    optional_bias: tuple[str, ...] = ()  # that have one where attention_bias says so
    qk_norm: str = ""  # head: over each head's width; all: over the whole projection
    norms: int = 2  # of a block, as wide as the model
    head_dim: int | None = None  # where the configuration leaves it open; None: the width shared by the heads
    tied: bool = False  # whether head and embedding are one matrix where the configuration says nothing
    feed_forward: Callable[[Config, int], Iterator[Part]] | None = None  # None: one gated layer
    latent: bool = False  # attention through low-rank matrices (MLA)
    sinks: bool = False  # one number a head


def text_config(config: Config) -> Config:
    """Settings of the language model, which stand in a part of their own in models that also see."""
    part = config.get("text_config")
    return {**part, "tie_word_embeddings": _tied(config, part)} if isinstance(part, dict) else config


def _tied(config: Config, part: Config) -> Any:
    own = config.get("tie_word_embeddings")
    return part.get("tie_word_embeddings") if own is None else own


def parts(config: Config) -> tuple[Part, ...]:
    """All parameters of the model that ``config`` describes. Raises BitwrightError for a family that has no row."""
    text = text_config(config)
    return (*_text(text, _family(text)), *_vision(config))


def parts_of_headers(shapes: dict[str, tuple[int, ...]]) -> tuple[Part, ...]:
    """The same from the tensors of a checkpoint that is here, by their names; for families without a row."""
    return tuple(Part(_role(name, shape), shape) for name, shape in shapes.items())


def _role(name: str, shape: tuple[int, ...]) -> str:
    words = name.lower()
    if any(word in words for word in ("vision", "visual", "multi_modal", "mm_projector")):
        return VISION
    if len(shape) != 2 and not (len(shape) == 3 and "expert" in words):
        return BIAS if words.endswith("bias") else NORM
    if any(word in words for word in ("embed_tokens", "wte", "word_embeddings", "embed_in", "wpe")):
        return EMBEDDING
    if any(words.endswith(word) for word in ("lm_head.weight", "embed_out.weight", "output.weight")):
        return HEAD
    return EXPERT if ".experts." in words else LINEAR


def head_dim(config: Config) -> int:
    """Width of one attention head."""
    known = FAMILIES.get(str(config.get("model_type")))
    given = config.get("head_dim") or (known.head_dim if known else None)
    return int(given or config["hidden_size"] // config["num_attention_heads"])


def _family(config: Config) -> Family:
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise fail(
            "estimate/family", "config.json", saw=f"model_type {kind}", wanted=f"one of {', '.join(sorted(FAMILIES))}",
            help="name a directory with the weights: from its tensor headers every family can be counted",
        )  # fmt: skip
    return FAMILIES[kind]


def _text(config: Config, family: Family) -> Iterator[Part]:
    hidden, vocabulary, layers = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    tied = config.get("tie_word_embeddings")
    yield Part(EMBEDDING, (vocabulary, hidden), name="token_embd.weight")
    if not (family.tied if tied is None else tied):
        yield Part(HEAD, (vocabulary, hidden), name="output.weight")
    yield Part(NORM, (hidden,))
    for layer in range(layers):
        yield from _latent_attention(config) if family.latent else _attention(config, family, layer)
        yield Part(NORM, (hidden,), family.norms)
        yield from (family.feed_forward or _gated)(config, layer)


def _attention(config: Config, family: Family, layer: int) -> Iterator[Part]:
    hidden, width, heads = int(config["hidden_size"]), head_dim(config), int(config["num_attention_heads"])
    shared = int(config.get("num_key_value_heads") or heads)
    rows = {"q": heads * width, "k": shared * width, "v": shared * width}
    for role, n in rows.items():
        yield Part(LINEAR, (n, hidden), name=f"blk.{layer}.attn_{role}.weight")
    yield Part(LINEAR, (hidden, heads * width), name=f"blk.{layer}.attn_output.weight")
    biased = family.bias + (family.optional_bias if config.get("attention_bias") else ())
    for role in biased:
        yield Part(BIAS, (rows.get(role, hidden),))
    if family.qk_norm:
        yield from (Part(NORM, (width if family.qk_norm == "head" else rows[role],)) for role in "qk")
    if family.sinks:
        yield Part(BIAS, (heads,))


def _latent_attention(config: Config) -> Iterator[Part]:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434)."""
    hidden, heads, rank = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    plain, rotary, values = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    if queries := config.get("q_lora_rank"):
        yield Part(LINEAR, (queries, hidden))
        yield Part(NORM, (queries,))
        yield Part(LINEAR, (heads * (plain + rotary), queries))
    else:
        yield Part(LINEAR, (heads * (plain + rotary), hidden))
    yield Part(LINEAR, (rank + rotary, hidden))
    yield Part(NORM, (rank,))
    yield Part(LINEAR, (heads * (plain + values), rank))
    yield Part(LINEAR, (hidden, heads * values))


def _gated(config: Config, layer: int, inner: int | None = None) -> Iterator[Part]:
    hidden, width = int(config["hidden_size"]), int(inner or config["intermediate_size"])
    for role in ("gate", "up"):
        yield Part(LINEAR, (width, hidden), name=f"blk.{layer}.ffn_{role}.weight")
    yield Part(LINEAR, (hidden, width), name=f"blk.{layer}.ffn_down.weight")
    if config.get("mlp_bias"):
        yield Part(BIAS, (width,), 2)
        yield Part(BIAS, (hidden,))


def _experts(hidden: int, inner: int, count: int, chosen: int) -> Iterator[Part]:
    yield Part(EXPERT, (inner, hidden), 2 * count, 2 * chosen)
    yield Part(EXPERT, (hidden, inner), count, chosen)
    yield Part(LINEAR, (count, hidden))  # the router


def _mixtral(config: Config, layer: int) -> Iterator[Part]:
    yield from _experts(
        config["hidden_size"], config["intermediate_size"], config["num_local_experts"], config["num_experts_per_tok"]
    )


def _is_sparse(config: Config, layer: int) -> bool:
    step = config.get("decoder_sparse_step", 1)
    return layer not in (config.get("mlp_only_layers") or ()) and _n_experts(config) > 0 and (layer + 1) % step == 0


def _n_experts(config: Config) -> int:
    return int(config.get("num_experts") or config.get("num_local_experts") or 0)


def _qwen_moe(config: Config, layer: int) -> Iterator[Part]:
    if not _is_sparse(config, layer):
        yield from _gated(config, layer)
        return
    hidden = config["hidden_size"]
    yield from _experts(hidden, config["moe_intermediate_size"], _n_experts(config), config["num_experts_per_tok"])
    if shared := config.get("shared_expert_intermediate_size"):
        yield from _gated(config, layer, shared)
        yield Part(LINEAR, (1, hidden))


def _deepseek(config: Config, layer: int) -> Iterator[Part]:
    if layer < config.get("first_k_dense_replace", 0):
        yield from _gated(config, layer)
        return
    inner = config["moe_intermediate_size"]
    yield from _experts(config["hidden_size"], inner, config["n_routed_experts"], config["num_experts_per_tok"])
    if shared := config.get("n_shared_experts"):
        yield from _gated(config, layer, shared * inner)


def _gpt_oss(config: Config, layer: int) -> Iterator[Part]:
    hidden, inner, count, chosen = (
        config[key] for key in ("hidden_size", "intermediate_size", "num_local_experts", "num_experts_per_tok")
    )
    yield from _experts(hidden, inner, count, chosen)
    yield Part(BIAS, (count,))
    yield Part(BIAS, (2 * inner,), count, chosen)
    yield Part(BIAS, (hidden,), count, chosen)


def _vision(config: Config) -> Iterator[Part]:
    """The tower that sees, and what joins it to the language model."""
    vision = config.get("vision_config")
    if not isinstance(vision, dict):
        return
    tower = TOWERS.get(str(config.get("model_type")))
    if tower is None:
        raise fail(
            "estimate/vision", "config.json", saw=f"a vision tower of {config.get('model_type')}",
            wanted=f"one of {', '.join(sorted(TOWERS))}", help="name a directory with its tensor headers",
        )  # fmt: skip
    yield from tower(vision, text_config(config)["hidden_size"])


def _siglip(vision: Config, hidden: int) -> Iterator[Part]:
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    places = (vision["image_size"] // patch) ** 2
    yield Part(VISION, (width, vision.get("num_channels", 3), patch, patch))
    yield Part(VISION, (places, width))
    yield Part(VISION, (width,))  # the patches' bias
    layers = vision["num_hidden_layers"]
    yield Part(VISION, (width, width), 4 * layers)
    yield Part(VISION, (inner, width), 2 * layers)
    yield Part(VISION, (inner,), layers)
    yield Part(VISION, (width,), (4 + 1 + 4) * layers)  # biases of attention and second layer, two norms
    yield Part(VISION, (width,), 2)  # the last norm
    yield Part(VISION, (width, hidden))
    yield Part(VISION, (width,))  # the projector's norm


def _qwen2_vl(vision: Config, hidden: int) -> Iterator[Part]:
    width, depth, ratio = vision["embed_dim"], vision["depth"], vision["mlp_ratio"]
    patch, frames, channels = vision["patch_size"], vision["temporal_patch_size"], vision.get("in_channels", 3)
    inner, merged = int(width * ratio), width * vision["spatial_merge_size"] ** 2
    yield Part(VISION, (width, channels, frames, patch, patch))
    yield Part(VISION, (width, width), 4 * depth)
    yield Part(VISION, (inner, width), 2 * depth)
    yield Part(VISION, (inner,), depth)
    yield Part(VISION, (width,), (3 + 1 + 1 + 4) * depth)  # biases of qkv, of both projections, two norms
    yield Part(VISION, (width,), 2)
    yield Part(VISION, (merged, merged))
    yield Part(VISION, (merged,))
    yield Part(VISION, (hidden, merged))
    yield Part(VISION, (hidden,))


def _pixtral(vision: Config, hidden: int) -> Iterator[Part]:
    width, inner, layers, patch = (
        vision[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "patch_size")
    )
    yield Part(VISION, (width, vision.get("num_channels", 3), patch, patch))
    yield Part(VISION, (width, width), 4 * layers)
    yield Part(VISION, (inner, width), 3 * layers)
    yield Part(VISION, (width,), 2 * layers + 1)
    yield Part(VISION, (hidden, width))
    yield Part(VISION, (hidden, hidden))
    yield Part(VISION, (hidden,), 2)


ALL = ("q", "k", "v", "o")
FAMILIES = {
    "llama": Family(optional_bias=ALL),
    "mistral": Family(),
    "ministral": Family(),
    "qwen2": Family(bias=("q", "k", "v")),
    "qwen2_vl_text": Family(bias=("q", "k", "v")),
    "qwen3": Family(optional_bias=ALL, qk_norm="head"),
    "phi3": Family(),
    "smollm3": Family(optional_bias=ALL, tied=True),
    "granite": Family(optional_bias=ALL),
    "olmo2": Family(optional_bias=ALL, qk_norm="all"),
    "gemma": Family(optional_bias=ALL, head_dim=256, tied=True),
    "gemma2": Family(optional_bias=ALL, norms=4, head_dim=256, tied=True),
    "gemma3_text": Family(optional_bias=ALL, norms=4, qk_norm="head", head_dim=256, tied=True),
    "mixtral": Family(feed_forward=_mixtral),
    "qwen2_moe": Family(bias=("q", "k", "v"), feed_forward=_qwen_moe),
    "qwen3_moe": Family(optional_bias=ALL, qk_norm="head", feed_forward=_qwen_moe),
    "deepseek_v2": Family(latent=True, feed_forward=_deepseek),
    "deepseek_v3": Family(latent=True, feed_forward=_deepseek),
    "gpt_oss": Family(optional_bias=ALL, sinks=True, head_dim=64, feed_forward=_gpt_oss),
}
TOWERS: dict[str, Callable[[Config, int], Iterator[Part]]] = {"gemma3": _siglip, "qwen2_vl": _qwen2_vl, "llava": _pixtral}
