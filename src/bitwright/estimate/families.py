"""The tensors that transformers would build for a configuration, counted without building them (no torch).

Each family is a row: what its attention, its feed-forward layers and its norms look like. The tests hold every row against the
class itself on the meta device, role by role.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bitwright.errors import BitwrightError, fail
from bitwright.estimate import feed_forward as ff
from bitwright.estimate.attention import ALL, attention, latent_attention
from bitwright.estimate.parts import EMBEDDING, EXPERT, HEAD, LINEAR, OTHER, VISION, VISION_LINEAR, Part, Parts
from bitwright.estimate.recurrent import (
    delta_net,
    delta_net_state,
    mamba,
    mamba2,
    mamba2_state,
    mamba_state,
    short_convolution,
    short_convolution_state,
)
from bitwright.estimate.vision import vision
from bitwright.models.settings import (
    BOTH,
    CONVOLUTION,
    FULL,
    NONE,
    RECURRENT,
    SLIDING,
    Config,
    layer_kinds,
    require_sizes,
    text_config,
)


@dataclass(frozen=True)
class Recurrent:
    """A layer that keeps a state of fixed size: its tensors, and the bytes of the state for one text."""

    parts: Callable[[Config, int], Parts]
    state: Callable[[Config], int]


@dataclass(frozen=True)
class Family:
    """What the blocks of a family are made of."""

    bias: tuple[str, ...] = ()  # of q, k, v, o that always have one
    optional_bias: tuple[str, ...] = ()  # that have one where attention_bias says so
    qk_norm: str = ""  # head: over each head's width; all: over the whole projection
    norms: int = 2  # of a block, as wide as the model
    norm_bias: bool = False  # layer norms in place of RMS norms
    feed_forward: Callable[[Config, int], Parts] | None = ff.gated
    latent: bool = False  # attention through low-rank matrices (MLA)
    sinks: bool = False  # one number a head
    gated: bool = False  # queries come with a gate
    fused: bool = False  # queries, keys and values are one matrix
    crossing: bool = False  # some layers attend to a picture
    spare_rows: int = 0  # of the embedding, which the head has not
    recurrent: Recurrent | None = None


def parts(config: Config) -> tuple[Part, ...]:
    """All parameters of the model that ``config`` describes. Raises BitwrightError for a family that has no row."""
    text = text_config(config)
    family = family_of(text)
    try:
        require_sizes(text)
        return (*_text(text, family), *vision(config))
    except ODD as error:
        raise odd_settings(text, error) from None


ODD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)  # what arithmetic on odd settings raises


def odd_settings(text: Config, error: Exception) -> BitwrightError:
    """The error to raise where the settings of a configuration cannot be counted with."""
    return fail(
        "estimate/settings",
        "config.json",
        saw=f"{type(error).__name__}: {str(error)[:80]}",
        wanted=f"the settings of a {text.get('model_type')} model",
        help="download config.json again",
    )


def family_of(text: Config) -> Family:
    kind = str(text.get("model_type"))
    if kind not in FAMILIES:
        raise fail(
            "estimate/family",
            "config.json",
            saw=f"model_type {kind}",
            wanted=f"one of {', '.join(sorted(FAMILIES))}",
            help="name a directory or a hub id: from its tensor headers every family can be counted",
        )
    return FAMILIES[kind]


def _text(text: Config, family: Family) -> Parts:
    hidden, vocabulary = text["hidden_size"], text["vocab_size"]
    yield Part(EMBEDDING, (vocabulary + family.spare_rows, hidden), name="token_embd.weight")
    if not text.get("tie_word_embeddings"):
        yield Part(HEAD, (vocabulary, hidden), name="output.weight")
    norm = Part(OTHER, (hidden,), 2 if family.norm_bias else 1)
    yield norm
    crossed = set(text.get("cross_attention_layers") or ()) if family.crossing else set()
    for layer, kind in enumerate(layer_kinds(text)):
        yield from _crossing(text, layer) if layer in crossed else _mixing(text, family, layer, kind)
        yield Part(OTHER, (hidden,), family.norms * norm.count)
        if family.feed_forward is not None:
            yield from family.feed_forward(text, layer)


def _mixing(text: Config, family: Family, layer: int, kind: str) -> Parts:
    if kind in (FULL, SLIDING, BOTH):
        biased = family.bias + (family.optional_bias if text.get("attention_bias") else ())
        yield from (
            latent_attention(text, layer)
            if family.latent
            else attention(text, layer, biased, family.qk_norm, family.sinks, family.gated, family.fused)
        )
    if kind in (RECURRENT, CONVOLUTION, BOTH) and family.recurrent is not None:
        yield from family.recurrent.parts(text, layer)
    elif kind not in (FULL, SLIDING, NONE):
        raise ValueError(f"{kind} layers")


def _crossing(text: Config, layer: int) -> Parts:
    """Attention to a picture, with norms over each head and two gates."""
    yield from attention(text, layer, qk_norm="head")
    yield Part(OTHER, (1,), 2)


def parts_of_headers(shapes: dict[str, tuple[int, ...]], chosen: int | None = None) -> tuple[Part, ...]:
    """The same from the tensors of a checkpoint, by their names as safetensors or GGUF files have them.

    ``chosen``: the experts that take part in one token.
    """
    found: dict[tuple[str, tuple[int, ...], str], int] = {}
    routed: set[tuple[str, tuple[int, ...], str]] = set()
    for name, shape in shapes.items():
        role, words = _role(name, shape), name.lower()
        if ("experts." in words or "_exps" in words) and "shared" not in words:
            stacked = len(shape) == (3 if role == EXPERT else 2)
            many, key = shape[0] if stacked else 1, (role, shape[1:] if stacked else shape, EXPERT_NUMBER.sub("experts.", name))
            routed.add(key)
        else:
            many, key = 1, (role, shape, name)
        found[key] = found.get(key, 0) + many
    return tuple(
        Part(
            role,
            shape,
            count,
            min(count, chosen) if chosen and key in routed else None,
            name if role in (LINEAR, EXPERT, EMBEDDING, HEAD) else "",
        )
        for key, count in found.items()
        for role, shape, name in (key,)
    )


EXPERT_NUMBER = re.compile(r"experts\.\d+\.")
SEES = ("vision", "visual", "multi_modal", "mm_projector", "connector", "image_newline")
EMBEDS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "token_embd", "embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
VECTORS = ("conv1d", "position", "norm", "a_log", "ssm_a", "ssm_conv1d", "rope_freqs")
ROUTERS = ("gate_inp.weight", "mlp.gate.weight", "mixer.gate.weight", "block_sparse_moe.gate.weight", "router.weight")


def _role(name: str, shape: tuple[int, ...]) -> str:
    words = name.lower()
    if any(word in words for word in SEES) or words.startswith(("v.", "mm.")):
        return VISION_LINEAR if len(shape) == 2 and words.endswith("weight") and "embed" not in words else VISION
    if words.endswith("bias"):
        return OTHER
    if ("experts." in words or "_exps" in words) and len(shape) >= 2:
        return EXPERT if "shared" not in words else LINEAR
    if len(shape) != 2:
        return OTHER
    if any(word in words for word in EMBEDS):
        return EMBEDDING
    if words in HEADS or (words.endswith(HEADS[:2]) and "blk" not in words):
        return HEAD
    return OTHER if any(word in words for word in VECTORS) or words.endswith(ROUTERS) else LINEAR


JAMBA = Recurrent(partial(mamba, norms=True), mamba_state)
MAMBA = Recurrent(mamba, mamba_state)
MAMBA2 = Recurrent(mamba2, mamba2_state)
DELTA_NET = Recurrent(delta_net, delta_net_state)
QKV = ("q", "k", "v")


def _falcon_mixer(text: Config, layer: int) -> Parts:
    return mamba2(text, layer, norm=bool(text.get("mamba_rms_norm")))


FAMILIES = {
    "llama": Family(optional_bias=ALL),
    "arcee": Family(optional_bias=ALL, feed_forward=ff.plain),
    "mistral": Family(),
    "ministral": Family(),
    "ministral3": Family(),
    "mllama_text_model": Family(crossing=True, spare_rows=8),
    "qwen2": Family(bias=QKV),
    "qwen2_vl_text": Family(bias=QKV),
    "qwen2_5_vl_text": Family(bias=QKV),
    "qwen3": Family(optional_bias=ALL, qk_norm="head"),
    "qwen3_vl_text": Family(optional_bias=ALL, qk_norm="head"),
    "phi3": Family(fused=True, feed_forward=ff.fused),
    "smollm3": Family(optional_bias=ALL),
    "granite": Family(optional_bias=ALL),
    "olmo2": Family(optional_bias=ALL, qk_norm="all"),
    "olmo3": Family(optional_bias=ALL, qk_norm="all"),
    "gemma": Family(optional_bias=ALL),
    "gemma2": Family(optional_bias=ALL, norms=4),
    "gemma3_text": Family(optional_bias=ALL, norms=4, qk_norm="head"),
    "mixtral": Family(feed_forward=ff.mixtral),
    "qwen2_moe": Family(bias=QKV, feed_forward=ff.qwen_moe),
    "qwen3_moe": Family(optional_bias=ALL, qk_norm="head", feed_forward=ff.qwen_moe),
    "qwen3_vl_moe_text": Family(optional_bias=ALL, qk_norm="head", feed_forward=ff.qwen_moe),
    "deepseek_v2": Family(latent=True, feed_forward=ff.deepseek),
    "deepseek_v3": Family(latent=True, feed_forward=ff.deepseek),
    "glm4_moe": Family(optional_bias=QKV, feed_forward=ff.deepseek),
    "gpt_oss": Family(optional_bias=ALL, sinks=True, feed_forward=ff.gpt_oss),
    "qwen3_next": Family(optional_bias=ALL, qk_norm="head", gated=True, feed_forward=ff.qwen_moe, recurrent=DELTA_NET),
    "qwen3_5_text": Family(optional_bias=ALL, qk_norm="head", gated=True, recurrent=DELTA_NET),
    "qwen3_5_moe_text": Family(optional_bias=ALL, qk_norm="head", gated=True, feed_forward=ff.qwen_moe, recurrent=DELTA_NET),
    "jamba": Family(feed_forward=ff.jamba, recurrent=JAMBA),
    "bamba": Family(optional_bias=ALL, recurrent=MAMBA2),
    "falcon_h1": Family(optional_bias=ALL, recurrent=Recurrent(_falcon_mixer, mamba2_state)),
    "granitemoehybrid": Family(optional_bias=ALL, feed_forward=ff.granite_hybrid, recurrent=MAMBA2),
    "nemotron_h": Family(norms=1, feed_forward=ff.nemotron_h, recurrent=MAMBA2),
    "lfm2": Family(qk_norm="head", feed_forward=ff.lfm2, recurrent=Recurrent(short_convolution, short_convolution_state)),
    "mamba": Family(norms=1, feed_forward=None, recurrent=MAMBA),
    "mamba2": Family(norms=1, feed_forward=None, recurrent=MAMBA2),
}
